// Package placement is the client of the Placement service, as far as a
// compute service needs it: its own resource provider with inventories, traits
// and aggregates, and the allocations of its instances
// (nova/scheduler/client/report.py:SchedulerReportClient).
//
// Every request asks for the microversion that Nova uses for the same purpose,
// so the answers have one known form from Zed on.
package placement
