"""Programs that make files of the repository: the tabulated problem and the table of known networks."""
