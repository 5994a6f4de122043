//go:build functional

package functional

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/host"
	"github.com/compute-agent/compute-agent/tests/functional/lab"
)

// moveTime bounds one step of a move on a busy machine.
const moveTime = 3 * time.Minute

// pairOf are two hosts, and flavors that only they take: a shared control plane may have more.
type pairOf struct {
	t                     *testing.T
	here, there           *lab.Lab
	nano, bigger, smaller string // flavors: bigger in memory, vcpus and disk
	roomy, more, roomier  string // with ephemeral disks of 1, 1 and 2 GB, the last two bigger in memory and vcpus, the last in disk
}

// twoHosts starts the agent of a second host, which ends with the test.
func twoHosts(t *testing.T, options ...string) *pairOf {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	name := "node2"
	if shared.Host != shared.Plane.Host && len(shared.Host) < 7 {
		name = shared.Host + "b"
	}
	other, err := shared.Neighbour(ctx, name)
	require.NoError(t, err)
	other.AgentOptions = strings.Join(options, "\n")
	forceDown(t, name, false)
	require.NoError(t, other.StartAgent(ctx))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		require.NoError(t, other.StopAgent(ctx))
		forceDown(t, name, true) // it would count as up for a minute, and what is sent there would wait
	})
	p := &pairOf{t: t, here: shared, there: other}
	trait := "CUSTOM_MOVES_" + strings.ToUpper(strings.ReplaceAll(shared.Host, "-", "_"))
	require.NoError(t, shared.Admin.Do(ctx, http.MethodPut, cloud.Placement, "/traits/"+trait, nil, nil))
	for _, l := range []*lab.Lab{shared, other} {
		p.addTrait(ctx, l, trait)
	}
	for _, f := range []struct {
		id                          *string
		ram, vcpus, disk, ephemeral int
	}{
		{&p.nano, 128, 1, 1, 0},
		{&p.bigger, 256, 2, 2, 0},
		{&p.smaller, 128, 1, 0, 0},
		{&p.roomy, 128, 1, 1, 1},
		{&p.more, 256, 2, 1, 1},
		{&p.roomier, 256, 2, 2, 2},
	} {
		want := cloud.NewFlavor{RAM: f.ram, VCPUs: f.vcpus, Disk: f.disk, Ephemeral: f.ephemeral}
		want.Name = fmt.Sprintf("%s-%d-%d-%d-%d", strings.ToLower(t.Name()), f.ram, f.vcpus, f.disk, f.ephemeral)
		*f.id, err = shared.Admin.CreateFlavor(ctx, want, map[string]string{"trait:" + trait: "required"})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, shared.Admin.DeleteFlavor(context.Background(), *f.id)) })
	}
	return p
}

func (p *pairOf) addTrait(ctx context.Context, l *lab.Lab, trait string) {
	p.t.Helper()
	provider, _, err := l.Admin.Provider(ctx, l.Host)
	require.NoError(p.t, err)
	path := "/resource_providers/" + provider + "/traits"
	require.NoError(p.t, cloud.Poll(ctx, 200*time.Millisecond, "the trait to be set", func() (bool, error) {
		var now struct {
			Traits     []string `json:"traits"`
			Generation int      `json:"resource_provider_generation"`
		}
		if err := l.Admin.Do(ctx, http.MethodGet, cloud.Placement, path, nil, &now); err != nil {
			return false, err
		}
		if slices.Contains(now.Traits, trait) {
			return true, nil
		}
		err := l.Admin.Do(ctx, http.MethodPut, cloud.Placement, path,
			map[string]any{"traits": append(now.Traits, trait), "resource_provider_generation": now.Generation}, nil)
		if cloud.IsStatus(err, http.StatusConflict) || err != nil && strings.Contains(err.Error(), "Please retry your update") {
			return false, nil // the agent has reported meanwhile; noticed late, that is an error 500
		}
		return false, err
	}))
}

// boot boots a server on the first host.
func (p *pairOf) boot(want cloud.NewServer) cloud.Server {
	p.t.Helper()
	if want.Flavor == "" {
		want.Flavor = p.nano
	}
	return boot(p.t, want)
}

// lab is the host that a server is on.
func (p *pairOf) lab(id string) *lab.Lab {
	p.t.Helper()
	server, err := p.here.Admin.Server(within(p.t, 20*time.Second), id)
	require.NoError(p.t, err)
	for _, l := range []*lab.Lab{p.here, p.there} {
		if l.Host == server.Host {
			return l
		}
	}
	p.t.Fatalf("server %s is on host %q", id, server.Host)
	return nil
}

// sh runs a script in the guest, wherever it is.
func (p *pairOf) sh(id, script string) string {
	p.t.Helper()
	out, err := p.lab(id).Agent.Exec(within(p.t, 30*time.Second), id, "sh", "-c", script)
	require.NoError(p.t, err)
	return strings.TrimSpace(out)
}

// act makes an action and waits for the status.
func (p *pairOf) act(id, action string, args any, status string) cloud.Server {
	p.t.Helper()
	ctx := within(p.t, moveTime)
	began := time.Now()
	require.NoError(p.t, p.here.Admin.Action(ctx, id, action, args, nil))
	server, err := p.here.Admin.WaitStatus(ctx, id, status)
	require.NoError(p.t, err)
	p.t.Logf("%s: %.1f s", action, time.Since(began).Seconds())
	return server
}

// held is what the server and its migrations hold in placement, by host.
func (p *pairOf) held(consumer string) []string {
	p.t.Helper()
	ctx := within(p.t, 20*time.Second)
	hosts := []string{}
	for _, l := range []*lab.Lab{p.here, p.there} {
		provider, _, err := l.Admin.Provider(ctx, l.Host)
		require.NoError(p.t, err)
		allocations, err := l.Admin.Allocations(ctx, provider)
		require.NoError(p.t, err)
		if held, ok := allocations[consumer]; ok {
			b, err := json.Marshal(held)
			require.NoError(p.t, err)
			p.t.Logf("%s holds of %s: %s", consumer, l.Host, b)
			hosts = append(hosts, l.Host)
		}
	}
	return hosts
}

// migration is a row of the migration list.
type migration struct {
	UUID, Status  string
	Type          string `json:"migration_type"`
	SourceCompute string `json:"source_compute"`
	DestCompute   string `json:"dest_compute"`
}

// migrations lists those of the server, the newest first.
func (p *pairOf) migrations(id string) []migration {
	p.t.Helper()
	var answer struct{ Migrations []migration }
	ctx := within(p.t, 20*time.Second)
	require.NoError(p.t, p.here.Admin.Do(ctx, http.MethodGet, cloud.Compute, "/os-migrations?instance_uuid="+id, nil, &answer))
	require.NotEmpty(p.t, answer.Migrations)
	return answer.Migrations
}

// events are the events of the newest action of that name, as "event=result@host".
func (p *pairOf) events(id, action string) []string {
	p.t.Helper()
	ctx := within(p.t, 20*time.Second)
	var list struct {
		Actions []struct {
			Action    string `json:"action"`
			RequestID string `json:"request_id"`
		} `json:"instanceActions"`
	}
	path := "/servers/" + id + "/os-instance-actions"
	require.NoError(p.t, p.here.Admin.Do(ctx, http.MethodGet, cloud.Compute, path, nil, &list))
	for _, a := range list.Actions {
		if a.Action != action {
			continue
		}
		var one struct {
			Action struct {
				Events []struct{ Event, Result, Host string }
			} `json:"instanceAction"`
		}
		require.NoError(p.t, p.here.Admin.Do(ctx, http.MethodGet, cloud.Compute, path+"/"+a.RequestID, nil, &one))
		var events []string
		for _, e := range one.Action.Events {
			if strings.HasPrefix(e.Event, "compute_") {
				events = append(events, e.Event+"="+e.Result+"@"+e.Host)
			}
		}
		slices.Sort(events)
		return events
	}
	return nil
}

// leftovers are the files of a server below an agent's state directory, and its containers.
func leftovers(t *testing.T, l *lab.Lab, id string) []string {
	t.Helper()
	s, err := host.Take(within(t, 30*time.Second), l.Agent.StateDir(), nil)
	require.NoError(t, err)
	var found []string
	for _, line := range s.Since(host.Snapshot{}) {
		if strings.Contains(line, id) {
			found = append(found, line)
		}
	}
	return found
}

// fill puts one of everything into the guest, and sum tells what is there.
func (p *pairOf) fill(id string) {
	p.t.Helper()
	p.sh(id, `mkdir -p /data/sub && cd /data && head -c 3000000 /dev/urandom > random && ln random hard && ln -s random soft &&
		dd if=/dev/zero of=sparse bs=1 count=1 seek=50000000 2>/dev/null && mkfifo pipe && chown 1000:1001 random && chmod 4711 random &&
		echo gone > gone && echo one > sub/one && rm -f /etc/motd; echo changed >> /etc/passwd; sync`)
}

func (p *pairOf) sum(id string) string {
	p.t.Helper()
	return p.sh(id, `cd /data && md5sum random hard soft sparse sub/* && stat -c '%n %a %u:%g %h %s %F' * sub/* | sort &&
		test $(stat -c %i random) = $(stat -c %i hard) && du -k sparse && md5sum /etc/passwd && ls -a / /etc | sort | md5sum`)
}

// kill ends an agent without a warning.
func kill(t *testing.T, l *lab.Lab) {
	t.Helper()
	require.ErrorContains(t, l.Agent.Signal(within(t, 10*time.Second), syscall.SIGKILL), "killed")
}

// disable keeps the scheduler from a host until the test ends.
func disable(t *testing.T, hostname string) {
	t.Helper()
	set := func(ctx context.Context, status string) error {
		services, err := shared.Admin.ComputeServices(ctx, "nova-compute")
		if err != nil {
			return err
		}
		for _, s := range services {
			if s.Host == hostname {
				err = shared.Admin.Do(ctx, http.MethodPut, cloud.Compute, "/os-services/"+s.ID, map[string]string{"status": status}, nil)
			}
		}
		return err
	}
	require.NoError(t, set(within(t, 30*time.Second), "disabled"))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*30*time.Second)
		defer cancel()
		require.NoError(t, set(ctx, "enabled"))
	})
}

// sameHostAllowed tells whether the API offers a server's own host for a resize.
func sameHostAllowed(t *testing.T) bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(shared.Plane.Base, "root/etc/nova/nova.conf"))
	require.NoError(t, err)
	return strings.Contains(string(text), "allow_resize_to_same_host = true")
}
