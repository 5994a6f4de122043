// Package lxc runs instances as Linux system containers through liblxc.
//
// Nothing of liblxc that forks, locks or changes directories runs in the agent:
// starting a guest and executing a command in one are done by a re-execution of
// the same binary (ChildMain). The agent itself reads /proc and the cgroup file
// systems, sends signals through pidfds and watches them. It keeps no state in
// memory that matters: what an instance should be is in a record file, what it is
// is asked from the kernel. Guests therefore outlive the agent, its crash and its
// upgrade.
//
// On disk, all owned by root:
//
//	<StateDir>/<uuid>.json       the record: spec and root file system
//	<LXCPath>/<name>/config      liblxc's configuration, rendered anew at every start
//	<LogDir>/<name>/lxc.log      liblxc's own log of the last start (lxc.log.1: the one before)
//	<LogDir>/<name>/console.log  console output, rotated by the monitor to console.log.1
package lxc
