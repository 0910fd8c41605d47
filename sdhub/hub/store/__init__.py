"""What the Hub keeps: SQLite (repositories, commits, discussions, …) and content-addressed files."""
