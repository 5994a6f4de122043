//go:build functional

package functional

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/host"
	"github.com/compute-agent/compute-agent/tests/functional/lab"
)

// imageRecord is an image as Glance shows it, with the properties that tests look at.
type imageRecord struct {
	ID, Name, Status string
	Size             int64
	DiskFormat       string `json:"disk_format"`
	ContainerFormat  string `json:"container_format"`
	ImageType        string `json:"image_type"`
	ImageState       string `json:"image_state"`
	ImageLocation    string `json:"image_location"`
	InstanceUUID     string `json:"instance_uuid"`
	BaseImageRef     string `json:"base_image_ref"`
	OwnerID          string `json:"owner_id"`
	BackupType       string `json:"backup_type"`
}

func readImage(ctx context.Context, id string) (imageRecord, error) {
	var image imageRecord
	err := shared.Admin.Do(ctx, http.MethodGet, cloud.Image, "/v2/images/"+id, nil, &image)
	return image, err
}

// createImage asks for a snapshot and returns its id; the image goes when the test ends.
func createImage(t *testing.T, server, name string) string {
	t.Helper()
	var answer struct {
		ID string `json:"image_id"`
	}
	require.NoError(t, shared.Admin.Action(within(t, 30*time.Second), server, "createImage", map[string]any{"name": name}, &answer))
	require.NotEmpty(t, answer.ID)
	dropImage(t, answer.ID)
	return answer.ID
}

// dropImage has an image deleted when the test ends.
func dropImage(t *testing.T, id string) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		if err := shared.Admin.DeleteImage(ctx, id); !cloud.IsStatus(err, http.StatusNotFound) {
			require.NoError(t, err)
		}
	})
}

// images lists the images of a server by their names.
func images(t *testing.T, server string) []imageRecord {
	t.Helper()
	// Not the test's context: clean-ups ask, too.
	ctx, cancel := context.WithTimeout(context.Background(), slower*30*time.Second)
	defer cancel()
	var answer struct{ Images []imageRecord }
	err := shared.Admin.Do(ctx, http.MethodGet, cloud.Image, "/v2/images?sort=created_at:asc&instance_uuid="+server, nil, &answer)
	require.NoError(t, err)
	return answer.Images
}

// imageActive waits until an image has its data.
func imageActive(t *testing.T, id string) imageRecord {
	t.Helper()
	var image imageRecord
	eventually(t, 2*time.Minute, "image to be active", func(ctx context.Context) (bool, error) {
		var err error
		image, err = readImage(ctx, id)
		return image.Status == "active", err
	})
	return image
}

// follow records what a server's states come to, as "status/vm_state/task_state", until the returned function is
// called.
func follow(t *testing.T, id string) (stop func() []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var seen []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			server, err := shared.Admin.Server(ctx, id)
			if err == nil {
				if state := server.VMState + "/" + server.TaskState; len(seen) == 0 || seen[len(seen)-1] != state {
					seen = append(seen, state)
				}
			}
		}
	}()
	return func() []string {
		cancel()
		<-done
		t.Logf("states: %v", seen)
		return seen
	}
}

// sawTask requires that a task state that begins so was seen: which of them is a matter of luck on a busy machine.
func sawTask(t *testing.T, states []string, prefixes ...string) {
	t.Helper()
	require.True(t, slices.ContainsFunc(states, func(state string) bool {
		_, task, _ := strings.Cut(state, "/")
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(task, p) })
	}), "%v has nothing of %v", states, prefixes)
}

// actionEvents are the events of a server's last action of a name, as "event result".
func actionEvents(t *testing.T, id, action string) []string {
	t.Helper()
	ctx := within(t, 30*time.Second)
	var list struct {
		Actions []struct {
			Action    string
			RequestID string `json:"request_id"`
		} `json:"instanceActions"`
	}
	require.NoError(t, shared.Admin.Do(ctx, http.MethodGet, cloud.Compute, "/servers/"+id+"/os-instance-actions", nil, &list))
	for _, a := range list.Actions { // the newest first
		if a.Action != action {
			continue
		}
		var events []string
		err := cloud.Poll(ctx, 200*time.Millisecond, "the events of "+action+" to end", func() (bool, error) {
			var shown struct {
				Action struct {
					Events []struct{ Event, Result string }
				} `json:"instanceAction"`
			}
			err := shared.Admin.Do(ctx, http.MethodGet, cloud.Compute, "/servers/"+id+"/os-instance-actions/"+a.RequestID, nil, &shown)
			events = nil
			for _, e := range shown.Action.Events {
				events = append(events, e.Event+" "+e.Result)
				if e.Result == "" {
					return false, err
				}
			}
			return err == nil, err
		})
		require.NoError(t, err)
		slices.Sort(events)
		return events
	}
	require.NoError(t, errors.New("the server has no action "+action))
	return nil
}

// asBefore waits until the host is as it was, as nothingLeft does, but for logs of guests that were restarted and, on a
// control plane that others use too, for their links.
func asBefore(t *testing.T, before host.Snapshot) {
	t.Helper()
	eventually(t, 20*time.Second, "the host to be as it was", func(ctx context.Context) (bool, error) {
		others, err := othersLinks(ctx)
		if err != nil {
			return false, err
		}
		var left []string
		for _, change := range snapshot(t).Since(before) {
			kind, name, _ := strings.Cut(change, " ")
			rotated := kind == "file" && strings.Contains(name, "/consoles/") && strings.HasSuffix(name, ".1")
			foreign := lab.Shared() && (kind == "netns" || kind == "link" && (others[name] || strings.HasPrefix(name, "brq")))
			if !rotated && !foreign {
				left = append(left, change)
			}
		}
		if len(left) > 0 {
			t.Logf("not as it was: %v", left)
		}
		return len(left) == 0, nil
	})
}

// othersLinks are the names that ports of other hosts and of Neutron's own services have on this machine.
func othersLinks(ctx context.Context) (map[string]bool, error) {
	ports, err := shared.Admin.Ports(ctx, "")
	names := map[string]bool{}
	for _, p := range ports {
		if p.HostID != shared.Host {
			names["tap"+p.ID[:11]], names["tin"+p.ID[:11]], names["ifb"+p.ID[:11]] = true, true, true
		}
	}
	return names, err
}
