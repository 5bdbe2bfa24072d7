"""pipeflow on a Ray cluster: Ray Train as the launcher, Ray Tune for a learning rate for each part."""
