"""python -m benchmarks.worth: measure what plans are worth after trainings of several lengths."""

from .run import command

if __name__ == "__main__":
    command()
