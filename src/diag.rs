//! Diagnostics: stable codes, spans, renderers.
