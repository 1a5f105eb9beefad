"""What only a PostgreSQL database has, which several daemons may share."""
