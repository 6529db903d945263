"""The project's own workshop: set-up, quality gates, sample data. Nothing imports it but itself."""
