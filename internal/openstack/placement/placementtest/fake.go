// Package placementtest is a Placement service for unit tests: one process's memory
// behind the real HTTP paths, with generations and conflicts as the real one has them.
package placementtest

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/compute-agent/compute-agent/internal/openstack/placement"
)

// Fake is a Placement service. It is an http.Handler for the paths below the endpoint.
type Fake struct {
	mux *http.ServeMux

	mu          sync.Mutex // guards the fields below
	providers   map[string]*Provider
	known       []string // traits that exist
	classes     []string // custom resource classes that exist
	allocations map[string]map[string]placement.Resources
	consumers   map[string]int64 // generations
	log         []string
	conflicts   int
	down        bool
}

// Provider is a resource provider.
type Provider struct {
	Name        string
	Generation  int64
	Inventories placement.Inventories
	Traits      []string
}

// New returns an empty service that knows the given standard traits.
func New(traits ...string) *Fake {
	f := &Fake{
		mux: http.NewServeMux(), known: traits, providers: map[string]*Provider{},
		allocations: map[string]map[string]placement.Resources{}, consumers: map[string]int64{},
	}
	for pattern, h := range map[string]func(*http.Request) (int, any){
		"POST /resource_providers":                   f.createProvider,
		"GET /resource_providers/{uuid}":             f.showProvider,
		"GET /resource_providers/{uuid}/inventories": f.inventories,
		"PUT /resource_providers/{uuid}/inventories": f.setInventories,
		"GET /resource_providers/{uuid}/traits":      f.traits,
		"PUT /resource_providers/{uuid}/traits":      f.setTraits,
		"GET /resource_providers/{uuid}/allocations": f.providerAllocations,
		"GET /traits":                  f.listTraits,
		"PUT /resource_classes/{name}": f.ensureClass,
		"GET /allocations/{uuid}":      f.consumer,
		"PUT /allocations/{uuid}":      f.setConsumer,
		"DELETE /allocations/{uuid}":   f.deleteConsumer,
		"POST /allocations":            f.setConsumers,
	} {
		f.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { f.serve(w, r, h) })
	}
	return f
}

// ServeHTTP implements http.Handler.
func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) { f.mux.ServeHTTP(w, r) }

func (f *Fake) serve(w http.ResponseWriter, r *http.Request, h func(*http.Request) (int, any)) {
	f.mu.Lock()
	f.log = append(f.log, r.Method+" "+r.URL.Path)
	status, body := http.StatusInternalServerError, any(nil)
	if !f.down {
		status, body = h(r)
	}
	f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if body != nil {
		_ = json.NewEncoder(w).Encode(body)
	}
}

// Log returns the requests so far, as "METHOD /path".
func (f *Fake) Log() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.log)
}

// ClearLog forgets the requests.
func (f *Fake) ClearLog() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = nil
}

// SetDown makes every request fail with 500, or ends that.
func (f *Fake) SetDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

// Conflict makes the next n changes of a provider fail as if another process had been faster.
func (f *Fake) Conflict(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conflicts = n
}

// Provider returns a copy of a provider; false: there is none.
func (f *Fake) Provider(uuid string) (Provider, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.providers[uuid]
	if !ok {
		return Provider{}, false
	}
	return Provider{Name: p.Name, Generation: p.Generation, Inventories: maps.Clone(p.Inventories), Traits: slices.Sorted(slices.Values(p.Traits))}, true
}

// SetProvider stores a provider as an operator would leave it.
func (f *Fake) SetProvider(uuid string, p Provider) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.providers[uuid] = &p
}

// RemoveProvider deletes a provider.
func (f *Fake) RemoveProvider(uuid string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.providers, uuid)
}

// Allocate gives a consumer resources of a provider.
func (f *Fake) Allocate(consumer, provider string, r placement.Resources) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.allocations[consumer] = map[string]placement.Resources{provider: r}
	f.consumers[consumer]++
}

// Consumers returns who holds anything, sorted.
func (f *Fake) Consumers() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.allocations))
}

func fault(status int, code, detail string) (int, any) {
	return status, map[string]any{"errors": []any{map[string]any{
		"status": status, "title": http.StatusText(status), "detail": detail, "code": code,
	}}}
}

func notFound() (int, any) {
	return fault(http.StatusNotFound, "placement.undefined_code", "not found")
}

func conflict() (int, any) {
	return fault(http.StatusConflict, "placement.concurrent_update", "resource provider generation conflict")
}

func (f *Fake) createProvider(r *http.Request) (int, any) {
	var in struct{ UUID, Name string }
	_ = json.NewDecoder(r.Body).Decode(&in) // our own client's body
	for uuid, p := range f.providers {
		if p.Name == in.Name && uuid != in.UUID {
			return fault(http.StatusConflict, "placement.undefined_code", "Conflicting resource provider name: "+in.Name+" already exists.")
		}
	}
	f.providers[in.UUID] = &Provider{Name: in.Name, Inventories: placement.Inventories{}}
	return http.StatusOK, f.describe(in.UUID)
}

func (f *Fake) describe(uuid string) map[string]any {
	p := f.providers[uuid]
	return map[string]any{"uuid": uuid, "name": p.Name, "generation": p.Generation, "root_provider_uuid": uuid}
}

func (f *Fake) showProvider(r *http.Request) (int, any) {
	uuid := r.PathValue("uuid")
	if f.providers[uuid] == nil {
		return notFound()
	}
	return http.StatusOK, f.describe(uuid)
}

func (f *Fake) inventories(r *http.Request) (int, any) {
	p := f.providers[r.PathValue("uuid")]
	if p == nil {
		return notFound()
	}
	return http.StatusOK, map[string]any{"inventories": p.Inventories, "resource_provider_generation": p.Generation}
}

// change checks the generation that a change names, and gives the provider.
func (f *Fake) change(r *http.Request, into any, generation *int64) (*Provider, int, any) {
	p := f.providers[r.PathValue("uuid")]
	if p == nil {
		status, body := notFound()
		return nil, status, body
	}
	_ = json.NewDecoder(r.Body).Decode(into) // our own client's body
	if f.conflicts > 0 {
		f.conflicts--
		p.Generation++ // somebody else's change
	}
	if *generation != p.Generation {
		status, body := conflict()
		return nil, status, body
	}
	p.Generation++
	return p, 0, nil
}

func (f *Fake) setInventories(r *http.Request) (int, any) {
	var in struct {
		Generation  int64                 `json:"resource_provider_generation"`
		Inventories placement.Inventories `json:"inventories"`
	}
	p, status, body := f.change(r, &in, &in.Generation)
	if p == nil {
		return status, body
	}
	for class, inv := range in.Inventories {
		if inv.Total < 1 || inv.Reserved > inv.Total || inv.Reserved < 0 {
			return fault(http.StatusBadRequest, "placement.undefined_code", "invalid inventory for "+class)
		}
		if _, had := p.Inventories[class]; !had && strings.HasPrefix(class, "CUSTOM_") && !slices.Contains(f.classes, class) {
			return fault(http.StatusBadRequest, "placement.undefined_code", "Unknown resource class in inventory for resource provider: No such resource class "+class)
		}
	}
	for _, by := range f.allocations {
		for class := range by[r.PathValue("uuid")] {
			_, had := p.Inventories[class]
			if _, kept := in.Inventories[class]; had && !kept {
				p.Generation-- // nothing was changed
				return fault(http.StatusConflict, "placement.inventory.inuse", "Inventory for "+class+" in use.")
			}
		}
	}
	p.Inventories = in.Inventories
	return http.StatusOK, map[string]any{"inventories": p.Inventories, "resource_provider_generation": p.Generation}
}

// ensureClass creates a custom resource class, from microversion 1.7 on.
func (f *Fake) ensureClass(r *http.Request) (int, any) {
	name := r.PathValue("name")
	switch {
	case !strings.HasPrefix(name, "CUSTOM_"):
		return fault(http.StatusBadRequest, "placement.undefined_code", "invalid resource class "+name)
	case slices.Contains(f.classes, name):
		return http.StatusNoContent, nil
	}
	f.classes = append(f.classes, name)
	return http.StatusCreated, nil
}

func (f *Fake) traits(r *http.Request) (int, any) {
	p := f.providers[r.PathValue("uuid")]
	if p == nil {
		return notFound()
	}
	return http.StatusOK, map[string]any{"traits": append([]string{}, p.Traits...), "resource_provider_generation": p.Generation}
}

func (f *Fake) setTraits(r *http.Request) (int, any) {
	var in struct {
		Generation int64    `json:"resource_provider_generation"`
		Traits     []string `json:"traits"`
	}
	p, status, body := f.change(r, &in, &in.Generation)
	if p == nil {
		return status, body
	}
	p.Traits = in.Traits
	return http.StatusOK, map[string]any{"traits": p.Traits, "resource_provider_generation": p.Generation}
}

func (f *Fake) listTraits(r *http.Request) (int, any) {
	found := []string{}
	for name := range strings.SplitSeq(strings.TrimPrefix(r.URL.Query().Get("name"), "in:"), ",") {
		if slices.Contains(f.known, name) || strings.HasPrefix(name, "CUSTOM_") {
			found = append(found, name)
		}
	}
	return http.StatusOK, map[string]any{"traits": found}
}

func (f *Fake) providerAllocations(r *http.Request) (int, any) {
	uuid := r.PathValue("uuid")
	p := f.providers[uuid]
	if p == nil {
		return notFound()
	}
	held := map[string]any{}
	for consumer, by := range f.allocations {
		if resources, ok := by[uuid]; ok {
			held[consumer] = map[string]any{"resources": resources}
		}
	}
	return http.StatusOK, map[string]any{"allocations": held, "resource_provider_generation": p.Generation}
}

func (f *Fake) consumer(r *http.Request) (int, any) {
	uuid := r.PathValue("uuid")
	by := map[string]any{}
	for provider, resources := range f.allocations[uuid] {
		by[provider] = map[string]any{"resources": resources, "generation": 1}
	}
	body := map[string]any{"allocations": by}
	if len(by) > 0 {
		body["consumer_generation"], body["project_id"], body["user_id"] = f.consumers[uuid], "project", "user"
	}
	return http.StatusOK, body
}

func (f *Fake) setConsumer(r *http.Request) (int, any) {
	uuid := r.PathValue("uuid")
	var in placement.Allocations
	_ = json.NewDecoder(r.Body).Decode(&in) // our own client's body
	if !f.current(uuid, in) {
		return fault(http.StatusConflict, "placement.concurrent_update", "consumer generation conflict")
	}
	f.replace(uuid, in)
	return http.StatusNoContent, nil
}

// setConsumers replaces what several consumers hold, or nothing.
func (f *Fake) setConsumers(r *http.Request) (int, any) {
	var in map[string]placement.Allocations
	_ = json.NewDecoder(r.Body).Decode(&in) // our own client's body
	for uuid, a := range in {
		if !f.current(uuid, a) {
			return fault(http.StatusConflict, "placement.concurrent_update", "consumer generation conflict")
		}
	}
	for uuid, a := range in {
		f.replace(uuid, a)
	}
	return http.StatusNoContent, nil
}

func (f *Fake) current(uuid string, a placement.Allocations) bool {
	return a.ConsumerGeneration == nil || *a.ConsumerGeneration == f.consumers[uuid]
}

func (f *Fake) replace(uuid string, a placement.Allocations) {
	delete(f.allocations, uuid)
	for provider, part := range a.ByProvider {
		if f.allocations[uuid] == nil {
			f.allocations[uuid] = map[string]placement.Resources{}
		}
		f.allocations[uuid][provider] = part.Resources
	}
	f.consumers[uuid]++
}

func (f *Fake) deleteConsumer(r *http.Request) (int, any) {
	uuid := r.PathValue("uuid")
	if _, ok := f.allocations[uuid]; !ok {
		return notFound()
	}
	delete(f.allocations, uuid)
	return http.StatusNoContent, nil
}
