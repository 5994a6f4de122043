package placement

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/openstack/ostest"
)

type answer struct {
	status int
	file   string // in testdata/zed
	text   string
}

// fakePlacement gives answers in turn and keeps what was asked.
type fakePlacement struct {
	tb testing.TB

	mu      sync.Mutex // guards the fields below
	answers []answer
	calls   []string
	bodies  []string
}

func (f *fakePlacement) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	f.calls = append(f.calls, r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("OpenStack-API-Version"))
	f.bodies = append(f.bodies, string(body))
	if len(f.answers) == 0 {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	a := f.answers[0]
	f.answers = f.answers[1:]
	w.WriteHeader(a.status)
	if a.file != "" {
		raw, err := os.ReadFile(filepath.Join("testdata", "zed", a.file+".json"))
		if err != nil {
			f.tb.Error(err)
		}
		a.text = string(raw)
	}
	_, _ = io.WriteString(w, a.text)
}

func newFake(tb testing.TB, answers ...answer) (*Client, *fakePlacement) {
	tb.Helper()
	f := &fakePlacement{tb: tb, answers: answers}
	return New(ostest.NewFake(tb, map[string]http.Handler{"placement": f}).Service("placement", "placement", "")), f
}

func TestEnsureProvider(t *testing.T) {
	t.Parallel()
	const recordedUUID = "5e865545-092a-42b5-942f-83d9cfeba1c7" // in testdata (Placement 8)
	const path = "/resource_providers/" + recordedUUID
	const show, create = "GET " + path + " placement 1.14", "POST /resource_providers placement 1.20"
	missing, made := answer{404, "provider-404", ""}, answer{200, "provider-created", ""}
	for _, tt := range []struct {
		name    string
		answers []answer
		calls   []string
		created bool
		status  int // of the failure
	}{
		{"there", []answer{made}, []string{show}, false, 0},
		{"new", []answer{missing, made}, []string{show, create}, true, 0},
		{"another was faster", []answer{missing, {409, "provider-409-uuid", ""}, made}, []string{show, create, show}, false, 0},
		{"name taken", []answer{missing, {409, "provider-409-name", ""}}, []string{show, create}, false, 409},
		{"broken", []answer{{500, "", ""}}, []string{show}, false, 500},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, f := newFake(t, tt.answers...)
			p, created, err := c.EnsureProvider(t.Context(), recordedUUID, "node")
			require.Equal(t, tt.calls, f.calls)
			require.Equal(t, tt.status, openstack.Status(err))
			if tt.status != 0 {
				require.Equal(t, tt.status == 409, errors.Is(err, ErrNameTaken))
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.created, created)
			require.Equal(t, recordedUUID, p.UUID)
		})
	}
}

func TestConflicts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		answer answer
		want   error
	}{
		{"generation", answer{409, "inventories-409", ""}, ErrConflict},
		{"in use", answer{409, "", `{"errors": [{"detail": "x", "code": "placement.inventory.inuse"}]}`}, ErrInUse},
		{"no code", answer{409, "", `{"errors": [{"detail": "x"}]}`}, ErrConflict},
		{"noticed late", answer{500, "", `{"errors": [{"status": 500, "title": "Internal Server Error", "detail": "The server has either erred or is ` +
			`incapable of performing the requested operation.\n\n Another thread concurrently updated the resource provider data. Please retry your update  "}]}`}, ErrConflict},
		{"gone", answer{404, "provider-404", ""}, ErrNotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, _ := newFake(t, tt.answer)
			_, err := c.SetInventories(t.Context(), "u", 3, nil)
			require.ErrorIs(t, err, tt.want)
			require.Equal(t, tt.answer.status, openstack.Status(err))
		})
	}
}

func TestInventoriesAndTraits(t *testing.T) {
	t.Parallel()
	c, f := newFake(
		t, answer{200, "inventories", ""}, answer{200, "inventories", ""},
		answer{200, "", `{"traits": ["COMPUTE_NODE"]}`}, answer{201, "", ""},
		answer{200, "", `{"traits": ["A", "B"], "resource_provider_generation": 7}`},
	)
	generation, err := c.SetInventories(t.Context(), "u", 0, Inventories{"VCPU": {Total: 4, MinUnit: 1, MaxUnit: 4, StepSize: 1, AllocationRatio: 1}})
	require.NoError(t, err)
	require.Equal(t, int64(1), generation)
	inventories, _, err := c.Inventories(t.Context(), "u")
	require.NoError(t, err)
	require.Equal(t, 2147483647, inventories["VCPU"].MaxUnit)
	usable, err := c.EnsureTraits(t.Context(), []string{"COMPUTE_NODE", "CUSTOM_X", "OWNER_LATER"})
	require.NoError(t, err)
	require.Equal(t, []string{"COMPUTE_NODE", "CUSTOM_X"}, usable)
	generation, err = c.SetTraits(t.Context(), "u", 1, []string{"B", "A"})
	require.NoError(t, err)
	require.Equal(t, int64(7), generation)
	require.Equal(t, []string{
		"PUT /resource_providers/u/inventories placement 1.26", "GET /resource_providers/u/inventories placement 1.0",
		"GET /traits?name=in%3ACOMPUTE_NODE%2CCUSTOM_X%2COWNER_LATER placement 1.6", "PUT /traits/CUSTOM_X placement 1.6",
		"PUT /resource_providers/u/traits placement 1.6",
	}, f.calls)
	require.JSONEq(t, `{"resource_provider_generation":0,"inventories":{"VCPU":{"total":4,"reserved":0,"min_unit":1,"max_unit":4,"step_size":1,"allocation_ratio":1}}}`, f.bodies[0])
	require.JSONEq(t, `{"resource_provider_generation":1,"traits":["A","B"]}`, f.bodies[4])
}

func TestAllocations(t *testing.T) {
	t.Parallel()
	const held = `{"allocations": {"p": {"generation": 4, "resources": {"VCPU": 1}}}, "consumer_generation": 2, "project_id": "pr", "user_id": "us"}`
	c, f := newFake(
		t, answer{200, "", held}, answer{204, "", ""}, // empty
		answer{200, "", `{"allocations": {}}`},                        // empty what is empty
		answer{204, "", ""}, answer{404, "", ""}, answer{500, "", ""}, // delete
		answer{200, "", `{"allocations": {"c": {"resources": {"VCPU": 2}}}, "resource_provider_generation": 9}`},
		answer{200, "", held}, answer{200, "", `{"allocations": {}}`}, answer{204, "", ""}, // move
		answer{200, "", `{"allocations": {}}`}, answer{200, "", `{"allocations": {}}`}, // nothing to move
	)
	ctx := t.Context()
	require.NoError(t, c.EmptyAllocation(ctx, "c"))
	require.NoError(t, c.EmptyAllocation(ctx, "c"))
	existed, err := c.DeleteAllocation(ctx, "c")
	require.NoError(t, err)
	require.True(t, existed)
	existed, err = c.DeleteAllocation(ctx, "c")
	require.NoError(t, err)
	require.False(t, existed)
	_, err = c.DeleteAllocation(ctx, "c")
	require.Equal(t, 500, openstack.Status(err))
	byConsumer, generation, err := c.ProviderAllocations(ctx, "p")
	require.NoError(t, err)
	require.Equal(t, map[string]Resources{"c": {"VCPU": 2}}, byConsumer)
	require.Equal(t, int64(9), generation)
	require.NoError(t, c.MoveAllocation(ctx, "from", "to"))
	require.ErrorIs(t, c.MoveAllocation(ctx, "from", "to"), ErrNotFound)
	require.Equal(t, []string{
		"GET /allocations/c placement 1.28", "PUT /allocations/c placement 1.28", "GET /allocations/c placement 1.28",
		"DELETE /allocations/c placement 1.0", "DELETE /allocations/c placement 1.0", "DELETE /allocations/c placement 1.0",
		"GET /resource_providers/p/allocations placement 1.0",
		"GET /allocations/from placement 1.28", "GET /allocations/to placement 1.28", "POST /allocations placement 1.28",
		"GET /allocations/from placement 1.28", "GET /allocations/to placement 1.28",
	}, f.calls)
	require.JSONEq(t, `{"allocations":{},"consumer_generation":2,"project_id":"pr","user_id":"us"}`, f.bodies[1])
	require.JSONEq(t, `{"from":{"allocations":{},"consumer_generation":2,"project_id":"pr","user_id":"us"},
		"to":{"allocations":{"p":{"resources":{"VCPU":1}}},"consumer_generation":null,"project_id":"pr","user_id":"us"}}`, f.bodies[9])
}
