package compute

import (
	"context"
	"errors"
	"time"

	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/shadow"
	"github.com/compute-agent/compute-agent/rpc"
)

// passwordTimeout bounds the change of a password: the guest may hold the lock of its accounts. The
// API's caller waits for it.
const passwordTimeout = 20 * time.Second

// setAdminPassword changes the administrator's password in a running guest
// (nova/compute/manager.py:set_admin_password). Whatever happens, the task state is reset.
func (m *Manager) setAdminPassword(ctx context.Context, inst *object.Instance, args rpc.Args) (any, error) {
	var password *string
	if err := args.Decode("new_pass", &password); err != nil {
		return nil, err
	}
	if password == nil { // an empty one is a choice, none is a mistake
		return nil, exception.InstancePasswordSetFailed(inst.UUID, "there is no password")
	}
	if state, err := m.powerState(ctx, inst.UUID); err != nil || state != driver.PowerStateRunning {
		return nil, exception.InstancePasswordSetFailed(inst.UUID, "instance "+inst.UUID+" is not running").Because(err)
	}
	opener, ok := m.Driver.(driver.RootOpener)
	if !ok {
		return nil, exception.SetAdminPasswdNotSupported()
	}
	if err := m.Conductor.LoadInstance(ctx, inst, "system_metadata"); err != nil {
		return nil, err
	}
	if err := changePassword(ctx, opener, inst, *password); errors.Is(err, driver.ErrUnsupported) {
		return nil, exception.SetAdminPasswdNotSupported()
	} else if err != nil {
		// What else may be in the way is the operator's business, and nova-compute hides it too.
		reqctx.Log(ctx).WithError(err).Warning("admin password not set")
		reason := "error setting admin password"
		for _, told := range []error{shadow.ErrNoUser, shadow.ErrNoAccounts} {
			if errors.Is(err, told) {
				reason = told.Error()
			}
		}
		return nil, exception.InstancePasswordSetFailed(inst.UUID, reason)
	}
	reqctx.Log(ctx).Info("admin password set")
	return nil, m.Conductor.SaveInstance(ctx, inst, map[string]any{"task_state": nil}, conductor.ExpectTask(object.TaskStateUpdatingPassword))
}

func changePassword(ctx context.Context, opener driver.RootOpener, inst *object.Instance, password string) error {
	ctx, cancel := context.WithTimeout(ctx, passwordTimeout)
	defer cancel()
	root, err := opener.OpenRoot(ctx, inst.UUID)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a directory
	return shadow.SetPassword(ctx, root, adminUser(inst), password)
}

// adminUser is whose password the API's "admin password" is: the image's os_admin_user, else root.
func adminUser(inst *object.Instance) string {
	if user := inst.System("image_os_admin_user"); user != "" {
		return user
	}
	return "root"
}

// imageAdminUser is the same in a guest that is about to be made of an image.
func imageAdminUser(image *object.Image) string {
	if user := image.Property("os_admin_user"); user != "" {
		return user
	}
	return "root"
}
