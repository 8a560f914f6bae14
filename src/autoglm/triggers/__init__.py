"""cron · data_changed · manual → one admission."""
