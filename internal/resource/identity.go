package resource

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// identityFile is where nova keeps the node's UUID (nova/virt/node.py:COMPUTE_ID_FILE).
const identityFile = "compute_id"

// ErrIdentity tells that the host's identity and Nova's records contradict each other, which only
// the operator can put right.
var ErrIdentity = errors.New("node identity")

// maxIdentity is how much of the file nova reads: a UUID and some white space.
const maxIdentity = 40

// readIdentity looks for the node's UUID in the directories of the configuration files
// and in the state path. Files that disagree are a fault; "" means that there is none.
func readIdentity(dirs []string) (string, error) {
	found, where := "", ""
	for _, dir := range dirs {
		path := filepath.Join(dir, identityFile)
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read node identity: %w", err)
		}
		if len(raw) > maxIdentity {
			raw = raw[:maxIdentity]
		}
		id, err := uuid.Parse(strings.TrimSpace(string(raw)))
		if err != nil {
			return "", fmt.Errorf("%w: %s does not hold a UUID", ErrIdentity, path)
		}
		if found != "" && found != id.String() {
			return "", fmt.Errorf("%w: %s and %s disagree; keep the one that is the node's resource provider UUID", ErrIdentity, where, path)
		}
		found, where = id.String(), path
	}
	return found, nil
}

// writeIdentity keeps the node's UUID in the state path. It never replaces a file, and
// leaves no half-written one, with which no later start would succeed.
func writeIdentity(dir, id string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write node identity: %w", err)
		}
	}()
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // nova's own mode: others read the file
		return err
	}
	f, err := os.CreateTemp(dir, identityFile+"-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.WriteString(id)
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), filepath.Join(dir, identityFile))
}

// findNode returns this host's node record, or a new identity for one. It refuses a
// start under a name that the records contradict: the host was renamed, or its state was
// copied from another (nova/compute/manager.py:_ensure_existing_node_identity,
// _check_for_host_rename).
func (t *Tracker) findNode(ctx context.Context) (node *object.ComputeNode, id string, err error) {
	id, err = readIdentity(t.opts.IdentityDirs)
	if err != nil {
		return nil, "", err
	}
	if id != "" {
		node, err = t.deps.Conductor.ComputeNodeByUUID(ctx, id)
		if err != nil {
			return nil, "", fmt.Errorf("look up the compute node: %w", err)
		}
		if node == nil {
			return nil, id, nil
		}
		if node.Host != t.opts.Host {
			return nil, "", fmt.Errorf("%w: compute node %s belongs to host %s, not %s: the host was renamed or its %s copied; "+
				"set [DEFAULT] host back, or remove the file on a new host", ErrIdentity, id, node.Host, t.opts.Host, identityFile)
		}
		return node, id, nil
	}
	nodes, err := t.deps.Conductor.ComputeNodesByHost(ctx, t.opts.Host)
	if err != nil {
		return nil, "", fmt.Errorf("look up the compute node: %w", err)
	}
	switch len(nodes) {
	case 0:
		id = uuid.NewString()
	case 1:
		node, id = nodes[0], nodes[0].UUID
	default:
		return nil, "", fmt.Errorf("%w: host %s has %d compute nodes; write the UUID of the right one to %s",
			ErrIdentity, t.opts.Host, len(nodes), filepath.Join(t.opts.StatePath, identityFile))
	}
	return node, id, writeIdentity(t.opts.StatePath, id)
}
