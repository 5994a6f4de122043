package compute

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// fakeImages are the images whose records Glance shows, and those that take data.
type fakeImages struct {
	trail *trail

	mu      sync.Mutex // guards the fields below
	records map[string]map[string]any
	data    map[string][]byte
	made    int
}

func newFakeImages(t *trail) *fakeImages {
	return &fakeImages{trail: t, records: map[string]map[string]any{}, data: map[string][]byte{}}
}

// add makes an image; the order of calls is that of their creation.
func (f *fakeImages) add(id, status string, fields map[string]any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	record := map[string]any{
		"id": id, "name": "name of " + id, "status": status, "disk_format": "raw", "container_format": "bare", "min_ram": 0, "min_disk": 0, "made": f.made,
	}
	f.made++
	maps.Copy(record, fields)
	f.records[id] = record
}

func (f *fakeImages) remove(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.records, id)
}

func (f *fakeImages) field(id, name string) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.records[id][name]
}

func (f *fakeImages) ids() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.records))
}

func (f *fakeImages) content(id string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.data[id]
}

// serve answers requests about its records; false: the request is for data, or for an image that has no record here.
func (f *fakeImages) serve(w http.ResponseWriter, r *http.Request) bool {
	id, file := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/images/"), "/file")
	if file && r.Method == http.MethodGet {
		return false
	}
	if r.Method != http.MethodGet {
		if err := f.trail.do(r.Context(), "glance "+r.Method, r.URL.Path); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
	}
	var body []byte
	if r.Method == http.MethodPut {
		body, _ = io.ReadAll(r.Body) // a client that leaves gets no answer
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.URL.Path == "/images" {
		_ = json.NewEncoder(w).Encode(map[string]any{"images": f.matching(r.URL.Query())})
		return true
	}
	record, known := f.records[id]
	if !known && r.Method == http.MethodGet {
		return false
	}
	if !known {
		w.WriteHeader(http.StatusNotFound)
		return true
	}
	switch r.Method {
	case http.MethodPut:
		record["status"], f.data[id] = "active", body
		w.WriteHeader(http.StatusNoContent)
		return true
	case http.MethodDelete:
		delete(f.records, id)
		w.WriteHeader(http.StatusNoContent)
		return true
	case http.MethodPatch:
		var changes []struct {
			Path  string
			Value any
		}
		_ = json.NewDecoder(r.Body).Decode(&changes) // our own client's body
		for _, c := range changes {
			record[strings.TrimPrefix(c.Path, "/")] = c.Value
		}
	}
	_ = json.NewEncoder(w).Encode(record)
	return true
}

// matching are the images that have all properties of a query, newest first. f.mu is held.
func (f *fakeImages) matching(query map[string][]string) []map[string]any {
	found := []map[string]any{}
	for _, record := range f.records {
		fits := true
		for name, values := range query {
			if !strings.HasPrefix(name, "sort_") && record[name] != values[0] {
				fits = false
			}
		}
		if fits {
			found = append(found, record)
		}
	}
	slices.SortFunc(found, func(a, b map[string]any) int { return b["made"].(int) - a["made"].(int) })
	return found
}
