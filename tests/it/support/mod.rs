//! What the tests stand on: fake registries, images, a small client.
