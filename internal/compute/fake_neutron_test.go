package compute

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// fakeNeutron is a Neutron with one network, whose answers are the recorded ones.
type fakeNeutron struct {
	tb    testing.TB
	trail *trail

	mu     sync.Mutex // guards the fields below
	ports  map[string]map[string]any
	order  []string
	bind   string // vif_type of ports that are bound
	status string // of ports that are bound
	down   bool
}

func newFakeNeutron(tb testing.TB, t *trail) *fakeNeutron {
	return &fakeNeutron{tb: tb, trail: t, ports: map[string]map[string]any{}, bind: "bridge", status: "DOWN"}
}

func (f *fakeNeutron) recorded(name string) string {
	raw, err := os.ReadFile(filepath.Join("..", "openstack", "neutron", "testdata", "zed", name+".json"))
	if err != nil {
		f.tb.Error(err)
	}
	return string(raw)
}

// addPort makes a port as a user does before a boot.
func (f *fakeNeutron) addPort(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.store(id, map[string]any{"device_id": "", "device_owner": "", "binding:host_id": "", "binding:vif_type": "unbound", "tenant_id": projectID})
}

// store makes a port of the recorded one. f.mu is held.
func (f *fakeNeutron) store(id string, changes map[string]any) map[string]any {
	var body struct{ Port map[string]any }
	if err := json.Unmarshal([]byte(f.recorded("port-bound")), &body); err != nil {
		f.tb.Error(err)
	}
	body.Port["id"] = id
	body.Port["mac_address"] = fmt.Sprintf("fa:16:3e:00:00:%02x", len(f.order)+1)
	body.Port["fixed_ips"] = []any{map[string]any{"subnet_id": "d58621a1-562b-4752-922d-9e32bf56d555", "ip_address": fmt.Sprintf("10.77.0.%d", 100+len(f.order))}}
	maps.Copy(body.Port, changes)
	f.ports[id] = body.Port
	f.order = append(f.order, id)
	return body.Port
}

// set changes what the next bindings come to.
func (f *fakeNeutron) set(bind, status string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bind, f.status = bind, status
}

func (f *fakeNeutron) setDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

// state tells whose each port is, as "id=device".
func (f *fakeNeutron) state() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := []string{}
	for _, id := range slices.Sorted(maps.Keys(f.ports)) {
		out = append(out, fmt.Sprintf("%s=%v@%v", id, f.ports[id]["device_id"], f.ports[id]["binding:host_id"]))
	}
	return out
}

func (f *fakeNeutron) remove(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.ports, id)
}

// ServeHTTP implements http.Handler below /v2.0.
func (f *fakeNeutron) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	status, body := http.StatusServiceUnavailable, ""
	if !f.down {
		status, body = f.answer(r)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func (f *fakeNeutron) answer(r *http.Request) (int, string) {
	query := r.URL.Query()
	id := strings.TrimPrefix(r.URL.Path, "/ports/")
	if r.Method != http.MethodGet {
		if err := f.trail.do(r.Context(), r.Method, r.URL.Path); err != nil {
			return http.StatusConflict, `{"NeutronError": {"type": "Conflict", "message": "` + err.Error() + `", "detail": ""}}`
		}
	}
	switch {
	case r.Method == http.MethodPost && r.URL.Path == "/ports":
		id = fmt.Sprintf("port-%d", len(f.order)+1)
		return http.StatusCreated, f.encode(f.change(r, f.store(id, map[string]any{"binding:host_id": "", "binding:vif_type": "unbound"})))
	case r.Method == http.MethodPut:
		if f.ports[id] == nil {
			return http.StatusNotFound, f.recorded("port-404")
		}
		return http.StatusOK, f.encode(f.change(r, f.ports[id]))
	case r.Method == http.MethodDelete:
		delete(f.ports, id)
		return http.StatusNoContent, ""
	case f.ports[id] != nil:
		return http.StatusOK, f.encode(f.ports[id])
	case r.URL.Path == "/ports" && strings.HasPrefix(query.Get("device_owner"), "network:"):
		return http.StatusOK, f.recorded("dhcp-ports")
	case r.URL.Path == "/ports":
		return http.StatusOK, f.list(query["device_id"], query["id"])
	case r.URL.Path == "/networks" && slices.Contains(query["fields"], "segments"):
		return http.StatusOK, f.recorded("networks-provider")
	case r.URL.Path == "/networks":
		return http.StatusOK, f.recorded("networks-user")
	case r.URL.Path == "/extensions", r.URL.Path == "/subnets", r.URL.Path == "/security-groups":
		return http.StatusOK, f.recorded(strings.TrimPrefix(r.URL.Path, "/"))
	}
	return http.StatusNotFound, f.recorded("floatingips-404")
}

// change applies the body of a request, and binds a port that is given a host. f.mu is held.
func (f *fakeNeutron) change(r *http.Request, port map[string]any) map[string]any {
	var body struct{ Port map[string]any }
	_ = json.NewDecoder(r.Body).Decode(&body) // our own client's body
	maps.Copy(port, body.Port)
	switch host, given := body.Port["binding:host_id"]; {
	case given && host == nil:
		port["binding:host_id"], port["binding:vif_type"] = "", "unbound"
	case given:
		port["binding:vif_type"], port["status"] = f.bind, f.status
	}
	return port
}

func (f *fakeNeutron) encode(port map[string]any) string {
	raw, _ := json.Marshal(map[string]any{"port": port})
	return string(raw)
}

func (f *fakeNeutron) list(devices, ids []string) string {
	found := []any{}
	for _, id := range f.order {
		p := f.ports[id]
		if p == nil {
			continue
		}
		device, _ := p["device_id"].(string)
		if len(devices) > 0 && !slices.Contains(devices, device) || len(ids) > 0 && !slices.Contains(ids, id) {
			continue
		}
		found = append(found, p)
	}
	raw, _ := json.Marshal(map[string]any{"ports": found})
	return string(raw)
}
