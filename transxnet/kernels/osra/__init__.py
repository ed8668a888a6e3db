"""OSRA, the overlapping spatial-reduction attention: reduced keys and values, projections, attention."""
