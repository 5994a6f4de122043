//go:build functional

package functional

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
	"github.com/compute-agent/compute-agent/tests/functional/controlplane"
)

// TestEveryMethodAnswers calls all methods that the control plane may send. Without arguments each must fail at once, whether the
// agent does what it is for or refuses it; a caller that waits out its timeout would hold up the API.
func TestEveryMethodAnswers(t *testing.T) {
	const soon = 2 // seconds
	callAll := func() []controlplane.Answer {
		t.Helper()
		answers, err := shared.Plane.CallEveryMethod(within(t, 5*time.Minute), shared.Host, 10*time.Second)
		require.NoError(t, err)
		require.Greater(t, len(answers), 60, "nova's client knows more methods")
		return answers
	}
	answers, slowest := callAll(), 0.0
	if slices.ContainsFunc(answers, func(a controlplane.Answer) bool { return a.Seconds > soon }) {
		// Whatever else the machine does makes one slower, though hardly the same one again.
		again := callAll()
		for i := range answers {
			j := slices.IndexFunc(again, func(a controlplane.Answer) bool { return a.Method == answers[i].Method })
			require.GreaterOrEqual(t, j, 0)
			if again[j].Seconds < answers[i].Seconds {
				answers[i] = again[j]
			}
		}
	}
	for _, a := range answers {
		slowest = max(slowest, a.Seconds)
		require.NotEqual(t, "MessagingTimeout", a.Error, "%s was not answered", a.Method)
		require.NotEqual(t, "RPCVersionCapError", a.Error, a.Method)
		require.NotEqual(t, "UnsupportedVersion", a.Error, a.Method)
		if a.Error == "NoSuchMethod" {
			t.Errorf("the agent does not know %s", a.Method)
		}
		if a.Seconds > soon {
			t.Errorf("%s was answered after %.1f s", a.Method, a.Seconds)
		}
	}
	t.Logf("%d methods answered, the slowest after %.3f s", len(answers), slowest)
}

func TestMalformedMessagesChangeNothing(t *testing.T) {
	server := boot(t, cloud.NewServer{})
	pid := shared.Agent.PID()
	for _, body := range []string{
		``,
		`{`,
		`[]`,
		`null`,
		`{"oslo.version": "2.0"}`,
		`{"oslo.version": "9.0", "oslo.message": "{}"}`,
		`{"oslo.version": "2.0", "oslo.message": "{"}`,
		`{"oslo.version": "2.0", "oslo.message": "{}"}`,
		`{"oslo.version": "2.0", "oslo.message": "{\"method\": 7}"}`,
		`{"oslo.version": "2.0", "oslo.message": "{\"method\": \"no_such_method\", \"args\": {}}"}`,
		`{"oslo.version": "2.0", "oslo.message": "{\"method\": \"stop_instance\", \"version\": \"5.0\", \"args\": {\"instance\": 3}}"}`,
		`{"oslo.version": "2.0", "oslo.message": "{\"method\": \"stop_instance\", \"version\": \"99.0\", \"args\": {}}"}`,
		`{"oslo.version": "2.0", "oslo.message": "{\"method\": \"get_console_output\", \"_reply_q\": \"nowhere\", \"_msg_id\": \"1\"}"}`,
	} {
		require.NoError(t, shared.Plane.Publish(within(t, 20*time.Second), "nova", "compute."+shared.Host, body))
	}
	_, err := shared.Admin.ConsoleLog(within(t, 10*time.Second), server.ID, 0)
	require.NoError(t, err)
	require.Equal(t, pid, shared.Agent.PID())
	answers(t, server)
	boot(t, cloud.NewServer{Name: "after-malformed"})
}

// TestOperationsEndSoon asks for what a user may ask of a server and no other test does. The agent may refuse any of it; then nova must hear that at once, and
// the server must be usable as before.
func TestOperationsEndSoon(t *testing.T) {
	type operation struct {
		name string
		args any
	}
	for _, c := range []struct {
		name string
		do   operation
		undo *operation
	}{
		{"pause", operation{"pause", nil}, &operation{"unpause", nil}},
		{"suspend", operation{"suspend", nil}, &operation{"resume", nil}},
		{"set password", operation{"changePassword", map[string]any{"adminPass": "secret"}}, nil},
		{"serial console", operation{"os-getSerialConsole", map[string]any{"type": "serial"}}, nil},
		{"graphic console", operation{"os-getVNCConsole", map[string]any{"type": "novnc"}}, nil},
		{"crash dump", operation{"trigger_crash_dump", nil}, nil},
		{"migrate", operation{"migrate", nil}, nil},
		{"live migration", operation{"os-migrateLive", map[string]any{"host": nil, "block_migration": "auto"}}, nil},
		{"resize", operation{"resize", map[string]any{"flavorRef": shared.Small}}, nil},
		{"reset network", operation{"resetNetwork", nil}, nil},
		{"inject network info", operation{"injectNetworkInfo", nil}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := boot(t, cloud.NewServer{})
			do(t, server.ID, c.do.name, c.do.args)
			if c.undo != nil {
				do(t, server.ID, c.undo.name, c.undo.args)
			}
			act(t, server.ID, "reboot", map[string]string{"type": "HARD"}, "ACTIVE")
			answers(t, server)
		})
	}
	t.Run("diagnostics", func(t *testing.T) {
		server := boot(t, cloud.NewServer{})
		began := time.Now()
		err := shared.Admin.Do(within(t, 20*time.Second), "GET", cloud.Compute, "/servers/"+server.ID+"/diagnostics", nil, nil)
		t.Logf("answer: %v", err)
		require.Less(t, time.Since(began), soonAnswered)
	})
}

// soonAnswered is what an answer may take of which nova does not wait out the time that it gives a call: that is a minute.
const soonAnswered = 20 * time.Second

// do makes a server action, which may be refused by a 4xx or 501 answer, and waits until no task is left.
func do(t *testing.T, id, action string, args any) {
	t.Helper()
	began := time.Now()
	if err := shared.Admin.Action(within(t, 30*time.Second), id, action, args, nil); err != nil {
		t.Logf("%s: refused by the API: %v", action, err)
		require.Less(t, time.Since(began), soonAnswered)
		require.False(t, cloud.IsStatus(err, 500), "an answer of the API's own, not its failure: %v", err)
		return
	}
	var server cloud.Server
	eventually(t, 15*time.Second, action, func(ctx context.Context) (bool, error) {
		var err error
		server, err = shared.Admin.Server(ctx, id)
		return server.TaskState == "", err
	})
	t.Logf("%s: %s, %s", action, server.Status, server.VMState)
	require.NotEqual(t, "ERROR", server.Status)
}
