"""Programs that make files of the repository: the tabulated problem and the zoo."""
