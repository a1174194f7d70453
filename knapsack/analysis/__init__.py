"""For notebook 05 and the tables of 02 and 04: from the files of a run to numbers, tables, claims and figures."""
