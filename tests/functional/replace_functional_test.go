//go:build functional

package functional

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// TestAgentIsReplaced: an agent that is upgraded again and again, in the way of a package manager, touches no guest, and serves each
// time. What runs is the old one until it is ended, whatever lies in its program's place.
func TestAgentIsReplaced(t *testing.T) {
	const times = 20
	server := boot(t, cloud.NewServer{})
	program, err := os.ReadFile(shared.Agent.Binary)
	require.NoError(t, err)
	install(t, []byte("#!/bin/false\n"))
	t.Cleanup(func() { install(t, program) })
	act(t, server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
	answers(t, server)
	logShows(t, server.ID, "busybox: ready", 10*time.Second) // its last line
	log, err := shared.Admin.ConsoleLog(within(t, 10*time.Second), server.ID, 0)
	require.NoError(t, err)
	first := processes(t, server)
	require.Len(t, first, 2, "init and its monitor")

	began := time.Now()
	for n := range times {
		install(t, program)
		signal := []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[n%2]
		err := shared.Agent.Signal(within(t, 20*time.Second), signal)
		require.Equal(t, signal == syscall.SIGKILL, err != nil, "%v", err)
		require.NoError(t, shared.Agent.Start())
		require.NoError(t, shared.Agent.WaitServing(within(t, 20*time.Second)))
		require.Equal(t, first, processes(t, server))
		now, err := shared.Admin.ConsoleLog(within(t, 20*time.Second), server.ID, 0)
		require.NoError(t, err)
		require.Equal(t, log, now, "it answers calls")
	}
	t.Logf("replaced %d times in %.1f s", times, time.Since(began).Seconds())
	answers(t, server)
	act(t, server.ID, "os-stop", nil, "SHUTOFF")
	require.Empty(t, processes(t, server), "the last one knows the guests of the first")
	act(t, server.ID, "os-start", nil, "ACTIVE")
	answers(t, server)
}

// install puts a program in the agent's place by one rename.
func install(t *testing.T, program []byte) {
	t.Helper()
	file := shared.Agent.Binary + ".new"
	require.NoError(t, os.WriteFile(file, program, 0o755))
	require.NoError(t, os.Rename(file, shared.Agent.Binary))
}

// processes are the monitor of a server's container and the monitor's children, which is the guest's init; each with the time at which
// it was started.
func processes(t *testing.T, server cloud.Server) (found []string) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	parents, monitor := map[string]string{}, ""
	for _, file := range stats {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // ended meanwhile
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		if err != nil {
			continue
		}
		// The name, in parentheses, may hold spaces; the parent and the start time are the 2nd and the 20th field after it (proc(5)).
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		require.Greater(t, len(fields), 19)
		pid := filepath.Base(filepath.Dir(file))
		process := pid + " since " + fields[19]
		parents[process] = fields[1]
		// [lxc monitor] PATH NAME
		words := strings.Fields(strings.ReplaceAll(string(line), "\x00", " "))
		if len(words) == 4 && words[0] == "[lxc" && words[3] == server.InstanceName && strings.HasPrefix(words[2], shared.Agent.StateDir()+"/") {
			monitor, found = pid, append(found, process)
		}
	}
	for process, parent := range parents {
		if parent == monitor {
			found = append(found, process)
		}
	}
	slices.Sort(found)
	return found
}
