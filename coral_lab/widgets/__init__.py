"""What one clicks on in a notebook: the query bench, the neighbourhood map, the attribution view."""
