//! Tidelock.
