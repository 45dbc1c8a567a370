//! Probing against real namespaces; health and failover stories.
