//! Probing: schedule, senders, samples.
