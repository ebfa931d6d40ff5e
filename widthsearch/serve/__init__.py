"""A team's page: the studies of a database in a browser and as JSON, read only."""
