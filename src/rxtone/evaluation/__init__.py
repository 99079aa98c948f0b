"""A classifier and reviews to an evaluation, its pictures and its report."""
