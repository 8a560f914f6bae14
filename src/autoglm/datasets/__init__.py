"""The feature table, its versions, and what may be learnt from them. No torch."""
