//! SQLite: journal, runs, samples, transitions, last good snapshot.
