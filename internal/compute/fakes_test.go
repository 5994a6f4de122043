package compute

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/compute/nowhere"
	"github.com/compute-agent/compute-agent/internal/nova/capture"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/ephemeral"
	"github.com/compute-agent/compute-agent/vif"
)

// trail is what was done on the host, in order.
type trail struct {
	mu    sync.Mutex // guards the fields below
	lines []string
	fails map[string][]error // by "step" or "step subject"
	waits map[string]chan struct{}
}

func newTrail() *trail { return &trail{fails: map[string][]error{}, waits: map[string]chan struct{}{}} }

// do notes a step and returns the failure that a test has put there; a step that is to
// block waits for its channel or the context.
func (t *trail) do(ctx context.Context, step, subject string) error {
	t.mu.Lock()
	t.lines = append(t.lines, step+" "+subject)
	wait := cmp.Or(t.waits[step], t.waits[step+" "+subject])
	var err error
	for _, key := range []string{step, step + " " + subject} {
		if errs := t.fails[key]; len(errs) > 0 {
			err, t.fails[key] = errs[0], errs[1:]
		}
	}
	t.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (t *trail) fail(key string, errs ...error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fails[key] = errs
}

// block makes a step, or one with its subject, wait until the returned function is called.
func (t *trail) block(step string) (release func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	wait := make(chan struct{})
	t.waits[step] = wait
	return sync.OnceFunc(func() { close(wait) })
}

// flow lets all steps pass from now on.
func (t *trail) flow() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waits = map[string]chan struct{}{}
}

func (t *trail) has(line string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Contains(t.lines, line)
}

func (t *trail) all() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.lines)
}

func (t *trail) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = nil
}

// fakeRoots is a storage.Backend that keeps names only.
type fakeRoots struct {
	*trail

	dir string // holds a tree for every mounted root; "": the paths lead nowhere

	mu      sync.Mutex // guards the fields below
	roots   map[string]storage.Root
	mounted map[string]bool
	healthy bool // what Healthy tells of each
}

var (
	_ storage.Backend       = (*fakeRoots)(nil)
	_ storage.Copier        = (*fakeRoots)(nil)
	_ storage.HealthChecker = (*fakeRoots)(nil)
)

func (r *fakeRoots) Name() string { return "fake" }

func (r *fakeRoots) Create(ctx context.Context, root storage.Root) error {
	if err := r.do(ctx, "root.create", root.InstanceID); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.roots[root.InstanceID] = root
	return nil
}

func (r *fakeRoots) Mount(ctx context.Context, root storage.Root) (string, error) {
	err := r.do(ctx, "root.mount", root.InstanceID)
	if err == nil {
		r.setMounted(root.InstanceID, true)
	}
	if err != nil || r.dir == "" {
		return "/roots/" + root.InstanceID, err
	}
	path := filepath.Join(r.dir, root.InstanceID)
	if err := os.MkdirAll(filepath.Join(path, "etc"), 0o755); err != nil {
		return "", err
	}
	return path, os.WriteFile(filepath.Join(path, "etc", "init"), []byte(root.InstanceID), 0o755)
}

func (r *fakeRoots) Flush(context.Context, string) error { return nil }

func (r *fakeRoots) Copy(ctx context.Context, from string, to storage.Root) error {
	if err := r.do(ctx, "root.copy", from); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.roots[to.InstanceID] = to
	return nil
}

func (r *fakeRoots) Unmount(ctx context.Context, uuid string) error {
	if err := r.do(ctx, "root.unmount", uuid); err != nil {
		return err
	}
	r.setMounted(uuid, false)
	return nil
}

func (r *fakeRoots) setMounted(id string, mounted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mounted == nil {
		r.mounted = map[string]bool{}
	}
	r.mounted[id] = mounted
}

func (r *fakeRoots) isMounted(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mounted[id]
}

func (r *fakeRoots) Healthy(context.Context, string) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.healthy, nil
}

func (r *fakeRoots) Delete(ctx context.Context, uuid string) error {
	if err := r.do(ctx, "root.delete", uuid); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.roots, uuid)
	delete(r.mounted, uuid)
	return nil
}

func (r *fakeRoots) Grow(ctx context.Context, uuid string, sizeGB int) error {
	if err := r.do(ctx, "root.grow", uuid); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	root, ok := r.roots[uuid]
	if !ok {
		return storage.ErrNotFound
	}
	root.SizeGB = sizeGB
	r.roots[uuid] = root
	return nil
}

func (r *fakeRoots) List(context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.roots)), nil
}

func (r *fakeRoots) Usage(context.Context) (storage.Usage, error) {
	return storage.Usage{Total: 100 << 30, Free: 60 << 30}, nil
}

// fakeEphemeral keeps directories for disks, and tells of nothing for instances without disks.
type fakeEphemeral struct {
	*trail

	dir  string // holds a tree for every disk
	used uint64 // of every disk

	mu      sync.Mutex // guards the fields below
	disks   map[string]ephemeral.Disks
	mounted map[string]bool
}

var _ EphemeralStore = (*fakeEphemeral)(nil)

func (e *fakeEphemeral) keeps(uuid string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, ok := e.disks[uuid]
	return ok
}

func (e *fakeEphemeral) CheckFormat(format string) error { return ephemeral.CheckFormat(format) }

func (e *fakeEphemeral) Create(ctx context.Context, d ephemeral.Disks) error {
	if err := e.do(ctx, "ephemeral.create", d.InstanceID); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if have, ok := e.disks[d.InstanceID]; ok && !reflect.DeepEqual(have, d) {
		return fmt.Errorf("disk exists with other properties: %+v", have)
	}
	d.Disks = slices.Clone(d.Disks)
	e.disks[d.InstanceID] = d
	return nil
}

// of are the disks of an instance.
func (e *fakeEphemeral) of(uuid string) []ephemeral.Disk {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.disks[uuid].Disks)
}

func (e *fakeEphemeral) Mount(ctx context.Context, uuid string) ([]string, error) {
	if !e.keeps(uuid) {
		return nil, nil
	}
	var paths []string
	for _, d := range e.of(uuid) {
		path := filepath.Join(e.dir, uuid, d.Name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	if err := e.do(ctx, "ephemeral.mount", uuid); err != nil {
		return nil, err
	}
	e.setMounted(uuid, true)
	return paths, nil
}

func (e *fakeEphemeral) setMounted(uuid string, mounted bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mounted == nil {
		e.mounted = map[string]bool{}
	}
	e.mounted[uuid] = mounted
}

func (e *fakeEphemeral) isMounted(uuid string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mounted[uuid]
}

func (e *fakeEphemeral) Unmount(ctx context.Context, uuid string) error {
	if !e.keeps(uuid) {
		return nil
	}
	if err := e.do(ctx, "ephemeral.unmount", uuid); err != nil {
		return err
	}
	e.setMounted(uuid, false)
	return nil
}

func (e *fakeEphemeral) Grow(ctx context.Context, uuid, name string, sizeGB int) error {
	return e.resize(ctx, "ephemeral.grow", uuid, name, sizeGB)
}

func (e *fakeEphemeral) Shrink(ctx context.Context, uuid, name string, sizeGB int) error {
	return e.resize(ctx, "ephemeral.shrink", uuid, name, sizeGB)
}

func (e *fakeEphemeral) resize(ctx context.Context, step, uuid, name string, sizeGB int) error {
	if err := e.do(ctx, step, uuid+"/"+name); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.disks[uuid].Disks {
		if d := &e.disks[uuid].Disks[i]; d.Name == name {
			d.SizeGB = sizeGB
			return nil
		}
	}
	return storage.ErrNotFound
}

func (e *fakeEphemeral) Used(_ context.Context, uuid string) ([]uint64, error) {
	var used []uint64
	for range e.of(uuid) {
		used = append(used, e.used)
	}
	return used, nil
}

func (e *fakeEphemeral) Delete(ctx context.Context, uuid string) error {
	if !e.keeps(uuid) {
		return nil
	}
	if err := e.do(ctx, "ephemeral.delete", uuid); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.disks, uuid)
	delete(e.mounted, uuid)
	return os.RemoveAll(filepath.Join(e.dir, uuid))
}

func (e *fakeEphemeral) List(context.Context) ([]string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.disks)), nil
}

// fakePlugger keeps the ports that are plugged.
type fakePlugger struct {
	*trail

	crash func() // runs at the beginning of each call; nil: nothing

	mu    sync.Mutex // guards ports and loose
	ports map[string]vif.VIF
	loose []vif.Marked // links beside the ports
}

var (
	_ vif.Plugger = (*fakePlugger)(nil)
	_ vif.Finder  = (*fakePlugger)(nil)
)

func (p *fakePlugger) Plug(ctx context.Context, v vif.VIF) (vif.Link, error) {
	if p.crash != nil {
		p.crash()
	}
	if err := p.do(ctx, "plug", v.PortID); err != nil {
		return vif.Link{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ports[v.PortID] = v
	return nowhere.Plugger{}.Plug(ctx, v)
}

func (p *fakePlugger) Unplug(ctx context.Context, v vif.VIF) error {
	if p.crash != nil {
		p.crash()
	}
	if err := p.do(ctx, "unplug", v.PortID); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.ports, v.PortID)
	return nil
}

// Marked finds the devices of the ports and what is loose.
func (p *fakePlugger) Marked(ctx context.Context) ([]vif.Marked, error) {
	if err := p.do(ctx, "find", "links"); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	marked := slices.Clone(p.loose)
	for _, v := range p.ports {
		marked = append(marked, vif.Marked{Instance: v.InstanceID, What: vif.MarkedDevice, Name: v.HostDevice(), InUse: true})
	}
	return marked, nil
}

func (p *fakePlugger) RemoveMarked(ctx context.Context, m vif.Marked) error {
	if err := p.do(ctx, "remove link", m.Name); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loose = slices.DeleteFunc(p.loose, func(l vif.Marked) bool { return l == m })
	return nil
}

// links are what is loose.
func (p *fakePlugger) links() []vif.Marked {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.loose)
}

// lose makes links all that there is.
func (p *fakePlugger) lose(links ...vif.Marked) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loose, p.ports = links, map[string]vif.VIF{}
}

func (p *fakePlugger) plugged() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.ports))
}

// Ids of the bodies that internal/openstack/neutron/testdata holds.
const (
	networkID = "4ab93dae-e490-4db0-aa3f-de588958b0a5"
	projectID = "42569041dd9442508ba2dfda9c351d5c"
)

// fakeGlance serves one image under every id, and others that have a record.
type fakeGlance struct {
	trail  *trail
	data   []byte
	more   map[string]fakeImage // by id; set before use
	images *fakeImages

	mu     sync.Mutex // guards status
	status int
}

type fakeImage struct {
	record string // JSON
	data   []byte
}

func (g *fakeGlance) setStatus(status int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status = status
}

// ServeHTTP implements http.Handler below /v2.
func (g *fakeGlance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	status := g.status
	g.mu.Unlock()
	if status == http.StatusOK && g.images.serve(w, r) {
		return
	}
	if err := g.trail.do(r.Context(), "glance "+r.Method, r.URL.Path); err != nil {
		status = http.StatusInternalServerError
	}
	if r.Method == http.MethodDelete {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	id, file := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/images/"), "/file")
	image, known := g.more[id]
	if !file && !known && status == http.StatusOK {
		status = http.StatusNotFound
	}
	w.WriteHeader(status)
	switch {
	case status != http.StatusOK:
	case !file:
		_, _ = w.Write([]byte(image.record))
	case known:
		_, _ = w.Write(image.data)
	default:
		_, _ = w.Write(g.data)
	}
}

// fakeSender keeps the notifications, and of each "PRIORITY event_type".
type fakeSender struct {
	on bool

	mu     sync.Mutex // guards the fields below
	events []string
	told   []notification
}

func (s *fakeSender) Notify(_ context.Context, topics []string, priority, publisher, eventType string, payload any) error {
	raw, err := json.Marshal(payload)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, priority+" "+eventType)
	s.told = append(s.told, notification{capture.Notification{Priority: priority, PublisherID: publisher, EventType: eventType, Payload: raw}, topics})
	return nil
}

// clear forgets what was told.
func (s *fakeSender) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events, s.told = nil, nil
}

func (s *fakeSender) Enabled() bool { return s.on }

func (s *fakeSender) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

var errBoom = errors.New("boom")

func requireLines(t testing.TB, want string, got []string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(want) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	require.Equal(t, lines, got)
}
