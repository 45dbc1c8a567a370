//! The Unix socket and HTTP listeners; commands go to the engine on one bounded channel.
