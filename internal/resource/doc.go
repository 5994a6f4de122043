// Package resource keeps the books of this host: its ComputeNode record, its
// resource provider in Placement, and what instances and migrations use of it
// (nova/compute/resource_tracker.py). Placement decides what fits; the tracker
// reports what there is and what is used.
package resource
