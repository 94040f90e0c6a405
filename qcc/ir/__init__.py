"""The intermediate representation: types, graphs, operations, their text form and their rules."""
