"""The work of the operators: each is a generator of steps that writes to a dataset."""
