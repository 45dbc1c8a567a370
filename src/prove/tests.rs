//! Stories of a world, and the seeded simulation.
