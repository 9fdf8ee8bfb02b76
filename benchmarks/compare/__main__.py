"""python -m benchmarks.compare: run search methods at equal numbers of evaluated plans."""

from .run import command

if __name__ == "__main__":
    command()
