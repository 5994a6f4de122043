package controlplane

import (
	"context"
	"fmt"
	"net/http"
	"os"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// object is a JSON object on its way to an API.
type object = map[string]any

// seedIdentity creates the services' users, the tenant demo, and the catalog.
func (p *Plane) seedIdentity(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	admin, err := p.Admin(ctx)
	if err != nil {
		return err
	}
	s := seeder{ctx: ctx, admin: admin}
	member := s.ensure("/roles", "role", object{"name": "member"})
	service := s.ensure("/projects", "project", object{"name": "service", "domain_id": "default"})
	demo := s.ensure("/projects", "project", object{"name": "demo", "domain_id": "default"})
	for _, name := range []string{"nova", "neutron", "glance", "placement"} {
		s.serviceUser(name, service)
	}
	tenant := s.ensure("/users", "user", object{"name": "demo", "domain_id": "default", "password": Password})
	s.grant(demo, tenant, member)
	for _, entry := range []struct{ kind, name, url string }{
		{cloud.Image, "glance", "http://127.0.0.1:9292"},
		{cloud.Placement, "placement", "http://127.0.0.1:8778"},
		{cloud.Compute, "nova", "http://127.0.0.1:8774/v2.1"},
		{cloud.Network, "neutron", "http://127.0.0.1:9696"},
	} {
		s.catalog(entry.kind, entry.name, entry.url)
	}
	return s.err
}

// serviceUser creates the user that a service calls others as.
func (s *seeder) serviceUser(name, project string) {
	user := s.ensure("/users", "user", object{"name": name, "domain_id": "default", "password": Password})
	for _, role := range []string{"admin", "service"} {
		s.grant(project, user, s.ensure("/roles", "role", object{"name": role}))
	}
}

// catalog enters a service and its address.
func (s *seeder) catalog(kind, name, url string) {
	id := s.ensure("/services", "service", object{"type": kind, "name": name})
	for _, face := range []string{"public", "internal", "admin"} {
		s.post(cloud.Identity, "/endpoints", object{"endpoint": object{
			"service_id": id, "interface": face, "url": url, "region_id": region,
		}})
	}
}

// seedContent creates flavors, images, and the network that every project may use.
func (p *Plane) seedContent(ctx context.Context) error {
	for name, port := range map[string]int{"glance-api": 9292, "nova-api": 8774, "neutron-server": 9696} {
		if err := p.waitPort(ctx, name, port); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	admin, err := p.Admin(ctx)
	if err != nil {
		return err
	}
	s := seeder{ctx: ctx, admin: admin}
	// m1.nano has no disk size: the image's own is the limit.
	for id, flavor := range map[string]cloud.NewFlavor{
		"1": {Name: NanoFlavor, RAM: 64, VCPUs: 1},
		"2": {Name: "m1.tiny", RAM: 256, VCPUs: 1, Disk: 1},
		"3": {Name: SmallFlavor, RAM: 512, VCPUs: 1, Disk: 2},
	} {
		flavor.ID = id
		s.post(cloud.Compute, "/flavors", object{"flavor": flavor})
	}
	s.image(BusyboxImage, p.BusyboxPath(), 32)
	s.image(DebianImage, p.DebianPath(), 64)
	s.network()
	for _, user := range []string{"admin", "demo"} {
		s.openSecurityGroup(user)
	}
	return s.err
}

// seeder makes requests until the first error.
type seeder struct {
	ctx   context.Context //nolint:containedctx // lives as long as one call of seedIdentity or seedContent
	admin *cloud.Client
	err   error
}

// post creates an object, unless it is there, and returns its id.
func (s *seeder) post(service, path string, body object) string {
	if s.err != nil {
		return ""
	}
	var answer map[string]struct{ ID string }
	err := s.admin.Do(s.ctx, http.MethodPost, service, path, body, &answer)
	if err != nil && !cloud.IsStatus(err, http.StatusConflict) {
		s.err = err
		return ""
	}
	for _, created := range answer {
		return created.ID
	}
	return ""
}

// ensure is post for an identity object with a name, which is looked up first.
func (s *seeder) ensure(path, kind string, body object) string {
	if s.err != nil {
		return ""
	}
	var answer map[string]any
	if s.err = s.admin.Do(s.ctx, http.MethodGet, cloud.Identity, path+"?name="+fmt.Sprint(body["name"]), nil, &answer); s.err != nil {
		return ""
	}
	if list, ok := answer[kind+"s"].([]any); ok && len(list) > 0 {
		if found, ok := list[0].(object); ok {
			return fmt.Sprint(found["id"])
		}
	}
	return s.post(cloud.Identity, path, object{kind: body})
}

func (s *seeder) grant(project, user, role string) {
	if s.err == nil {
		s.err = s.admin.Do(s.ctx, http.MethodPut, cloud.Identity, "/projects/"+project+"/users/"+user+"/roles/"+role, nil, nil)
	}
}

func (s *seeder) image(name, path string, minRAM int) {
	if s.err != nil {
		return
	}
	var have string
	if have, s.err = s.admin.ImageID(s.ctx, name); s.err != nil || have != "" {
		return
	}
	data, err := os.Open(path)
	if err != nil {
		s.err = err
		return
	}
	defer data.Close()
	_, s.err = s.admin.UploadImage(s.ctx, name, "raw", object{"min_ram": minRAM}, data)
}

// network creates the network that every project may boot on, with a subnet.
func (s *seeder) network() {
	if s.err != nil {
		return
	}
	var network string
	if network, s.err = s.admin.NetworkID(s.ctx, DemoNetwork); s.err != nil {
		return
	}
	if network == "" {
		network = s.post(cloud.Network, "/v2.0/networks", object{"network": object{
			"name": DemoNetwork, "shared": true, "provider:network_type": "flat", "provider:physical_network": "physnet1",
		}})
	}
	if s.err != nil {
		return
	}
	var subnets struct{ Subnets []any }
	if s.err = s.admin.Do(s.ctx, http.MethodGet, cloud.Network, "/v2.0/subnets?network_id="+network, nil, &subnets); s.err != nil {
		return
	}
	if len(subnets.Subnets) > 0 {
		return
	}
	s.post(cloud.Network, "/v2.0/subnets", object{"subnet": object{
		"name": "demo-subnet", "network_id": network, "ip_version": 4, "cidr": "10.77.0.0/24", "gateway_ip": "10.77.0.1",
		"allocation_pools": []object{{"start": "10.77.0.10", "end": "10.77.0.250"}},
	}})
}

// openSecurityGroup lets everything in through the default group of the user's project.
func (s *seeder) openSecurityGroup(user string) {
	if s.err != nil {
		return
	}
	tenant, err := connect(s.ctx, user)
	if err != nil {
		s.err = err
		return
	}
	var answer struct {
		Groups []struct{ ID string } `json:"security_groups"`
	}
	// Listing makes neutron create the default group.
	path := "/v2.0/security-groups?name=default&project_id=" + tenant.ProjectID()
	if s.err = tenant.Do(s.ctx, http.MethodGet, cloud.Network, path, nil, &answer); s.err != nil {
		return
	}
	for _, group := range answer.Groups {
		s.post(cloud.Network, "/v2.0/security-group-rules", object{"security_group_rule": object{
			"security_group_id": group.ID, "direction": "ingress", "ethertype": "IPv4", "remote_ip_prefix": "0.0.0.0/0",
		}})
	}
}
