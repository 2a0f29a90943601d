"""Indexed datasets in, samples out: what a trainer asks for, as a function of the sample's number."""
