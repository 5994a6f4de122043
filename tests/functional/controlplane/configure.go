package controlplane

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"text/template"
)

// files are the configuration of the chroot, laid out as there; each is a template.
//
//go:embed files
var files embed.FS

// uwsgi is the part that the uwsgi services have in common.
const uwsgi = `{{define "uwsgi"}}plugins = python3
buffer-size = 65535
master = true
thunder-lock = true
lazy-apps = true
enable-threads = true
no-orphans = true
die-on-term = true
rem-header = Content-Length
add-header = Connection: close
listen = 128
{{end}}`

// authSection is what a service needs to call another one as a user of Keystone.
func authSection(user string) string {
	return fmt.Sprintf(`auth_type = password
auth_url = %s
project_domain_name = Default
user_domain_name = Default
project_name = service
username = %s
password = %s
region_name = %s`, AuthURL, user, Password, region)
}

// tokenSection is what a service needs to check its callers' tokens.
func tokenSection(user string) string {
	return `[keystone_authtoken]
www_authenticate_uri = ` + AuthURL + `
memcached_servers = 127.0.0.1:11211
service_token_roles = service
service_token_roles_required = true
` + authSection(user)
}

// configure writes every configuration file.
func (p *Plane) configure(ctx context.Context) error {
	plugins := ""
	if p.Routers {
		plugins = "router"
	}
	values := map[string]any{
		"Database":     "mysql+pymysql://lab:" + Password + "@127.0.0.1",
		"Host":         p.Host,
		"Net":          p.Net,
		"Password":     Password,
		"Peer":         PeerHost,
		"PhysicalLink": physicalLink,
		"Plugins":      plugins,
		"Release":      p.Release.settings,
		"Transport":    TransportURL(),
	}
	functions := template.FuncMap{"auth": authSection, "token": tokenSection}
	err := fs.WalkDir(files, "files", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := files.ReadFile(path)
		if err != nil {
			return err
		}
		parsed, err := template.New(path).Funcs(functions).Parse(uwsgi + string(text))
		if err != nil {
			return err
		}
		var out strings.Builder
		if err := parsed.Execute(&out, values); err != nil {
			return err
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(out.String(), "#!") {
			mode = 0o755
		}
		return p.writeFile(strings.TrimPrefix(path, "files/"), out.String(), mode)
	})
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	names := "127.0.0.1 localhost " + p.Host + " " + PeerHost + "\n"
	if err := p.writeFile("etc/hosts", names, 0o644); err != nil {
		return err
	}
	if err := p.writeFile("etc/hostname", p.Host+"\n", 0o644); err != nil {
		return err
	}
	for owner, dirs := range map[string][]string{
		"glance":   {"/var/lib/glance", "/var/lib/glance/images", "/var/lib/glance/tasks", "/var/lib/glance/staging"},
		"nova":     {"/var/lib/nova", "/var/lib/nova/tmp", "/var/lib/nova/peer", "/var/lib/nova/peer/tmp", "/var/lib/nova/peer/instances"},
		"neutron":  {"/var/lib/neutron", "/var/lib/neutron/lock", "/var/lib/neutron/tmp"},
		"mysql":    {"/run/mysqld"},
		"rabbitmq": {"/var/lib/rabbitmq", "/var/log/rabbitmq"},
	} {
		if _, err := p.Run(ctx, "root", append([]string{"install", "-d", "-o", owner, "-g", owner}, dirs...)...); err != nil {
			return err
		}
	}
	_, err = p.Run(ctx, "root", "chmod", "1777", "/tmp")
	return err
}
