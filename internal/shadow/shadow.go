package shadow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that callers may test.
var (
	// ErrNoUser: the guest has no such account.
	ErrNoUser = errors.New("the guest has no such user")
	// ErrNoAccounts: the guest has no account files at all, so nobody can log in.
	ErrNoAccounts = errors.New("the guest has no /etc/passwd")
)

// SetPassword gives a user of the guest whose root directory is root a new password. It ends with ctx,
// but a file system that hangs may keep one goroutine for longer.
func SetPassword(ctx context.Context, root *os.File, user, password string) error {
	if user == "" || strings.ContainsAny(user, ":/\n\x00") {
		return fmt.Errorf("%q: %w", user, ErrNoUser)
	}
	fd, err := unix.FcntlInt(root.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("keep the guest's root: %w", err)
	}
	own := os.NewFile(uintptr(fd), root.Name())
	done := make(chan error, 1)
	go func() {
		defer own.Close() //nolint:errcheck // only a path
		done <- setPassword(ctx, own, user, password)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("change the guest's accounts: %w", ctx.Err())
	}
}

func setPassword(ctx context.Context, root *os.File, user, password string) error {
	passwd, err := locate(root, "etc/passwd")
	if errors.Is(err, unix.ENOENT) {
		return ErrNoAccounts
	}
	if err != nil {
		return err
	}
	defer passwd.close()
	_, status, err := passwd.read()
	if errors.Is(err, unix.ENOENT) {
		return ErrNoAccounts
	}
	if err != nil {
		return err
	}
	etc, err := openat2(root, "etc", unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return fmt.Errorf("open /etc of the guest: %w", err)
	}
	defer etc.Close() //nolint:errcheck // only a path
	unlock, err := lock(ctx, etc, status)
	if err != nil {
		return err
	}
	defer unlock()

	accounts, status, err := passwd.read() // again: it is locked now
	if err != nil {
		return err
	}
	account, ok := find(accounts, user)
	if !ok || len(account) < 2 {
		return fmt.Errorf("%q: %w", user, ErrNoUser)
	}
	hashed := methodOf(loginDefs(root)).crypt(password)
	if account[1] != "x" { // the guest has no shadow file
		return passwd.replace(edit(accounts, user, func(f []string) { f[1] = hashed }), status)
	}
	return setShadow(root, user, hashed)
}

// setShadow changes the second field of shadow(5) and the day of the last change. Other fields, locks
// of the account by expiry among them, stay.
func setShadow(root *os.File, user, hashed string) error {
	p, err := locate(root, "etc/shadow")
	if err != nil {
		return err
	}
	defer p.close()
	entries, status, err := p.read()
	if err != nil {
		return err
	}
	today := strconv.FormatInt(time.Now().Unix()/int64((24*time.Hour)/time.Second), 10)
	if _, ok := find(entries, user); !ok {
		if entries != "" && !strings.HasSuffix(entries, "\n") {
			entries += "\n"
		}
		return p.replace(entries+strings.Join([]string{user, hashed, today, "0", "99999", "7", "", "", ""}, ":")+"\n", status)
	}
	return p.replace(edit(entries, user, func(f []string) {
		f[1] = hashed
		if len(f) > 2 {
			f[2] = today
		}
	}), status)
}

// loginDefs is the guest's login.defs; "" if it cannot be read.
func loginDefs(root *os.File) string {
	p, err := locate(root, "etc/login.defs")
	if err != nil {
		return ""
	}
	defer p.close()
	text, _, err := p.read()
	if err != nil {
		return ""
	}
	return text
}

// find returns the fields of a user's line. The first counts, as for getpwnam(3).
func find(text, user string) ([]string, bool) {
	for line := range strings.Lines(text) {
		if f := strings.Split(strings.TrimSuffix(line, "\n"), ":"); f[0] == user && len(f) > 1 {
			return f, true
		}
	}
	return nil, false
}

// edit changes the fields of a user's line and leaves every other byte as it is.
func edit(text, user string, change func(fields []string)) string {
	var out strings.Builder
	done := false
	for line := range strings.Lines(text) {
		body, end := strings.CutSuffix(line, "\n")
		if f := strings.Split(body, ":"); !done && f[0] == user && len(f) > 1 {
			change(f)
			body, done = strings.Join(f, ":"), true
		}
		out.WriteString(body)
		if end {
			out.WriteByte('\n')
		}
	}
	return out.String()
}
