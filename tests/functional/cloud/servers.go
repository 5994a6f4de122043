package cloud

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// Server is a server as the compute API shows it.
type Server struct {
	ID, Name, Status string
	Host             string `json:"OS-EXT-SRV-ATTR:host"`
	InstanceName     string `json:"OS-EXT-SRV-ATTR:instance_name"`
	VMState          string `json:"OS-EXT-STS:vm_state"`
	TaskState        string `json:"OS-EXT-STS:task_state"`
	PowerState       int    `json:"OS-EXT-STS:power_state"`
	Fault            *Fault
	Addresses        map[string][]Address
	Progress         int
}

// Fault is what the API tells about a server in ERROR.
type Fault struct {
	Code             int
	Message, Details string
}

// Address is one address of a server.
type Address struct {
	Addr string
	MAC  string `json:"OS-EXT-IPS-MAC:mac_addr"`
}

// IP is the first address of the server, or "".
func (s Server) IP() string {
	for _, addresses := range s.Addresses {
		for _, address := range addresses {
			return address.Addr
		}
	}
	return ""
}

// NewServer says what to boot. Networks is "none", "auto" or a list of {"uuid": …} or {"port": …}.
type NewServer struct {
	Name             string `json:"name"`
	Image            string `json:"imageRef"`
	Flavor           string `json:"flavorRef"`
	Networks         any    `json:"networks"`
	AvailabilityZone string `json:"availability_zone,omitempty"`
	Host             string `json:"host,omitempty"` // which the scheduler looks at, unlike one in the zone
	KeyName          string `json:"key_name,omitempty"`
	ConfigDrive      bool   `json:"config_drive,omitempty"`
	UserData         string `json:"user_data,omitempty"`
	MinCount         int    `json:"min_count,omitempty"`
	MaxCount         int    `json:"max_count,omitempty"`
	BlockDevices     any    `json:"block_device_mapping_v2,omitempty"`

	AdminPass string            `json:"adminPass,omitempty"`
	Metadata  map[string]string `json:"metadata,omitempty"`

	TrustedCerts []string `json:"trusted_image_certificates,omitempty"`
	Personality  []File   `json:"personality,omitempty"`
}

// File is a personality file.
type File struct {
	Path     string `json:"path"`
	Contents []byte `json:"contents"` // base64 on the wire
}

// WithFiles is the last microversion that takes files.
const WithFiles = "compute 2.56"

// OnNetwork is the Networks value for one port on the network.
func OnNetwork(id string) any { return []map[string]string{{"uuid": id}} }

// OnPort is the Networks value for an existing port.
func OnPort(id string) any { return []map[string]string{{"port": id}} }

// CreateServer asks for the server (or several: MinCount) and returns the id of the first.
func (c *Client) CreateServer(ctx context.Context, s NewServer) (string, error) {
	var answer struct{ Server struct{ ID string } }
	version := microversions[Compute]
	if len(s.Personality) > 0 {
		version = WithFiles
	}
	err := c.DoAt(ctx, version, http.MethodPost, Compute, "/servers", map[string]any{"server": s}, &answer)
	return answer.Server.ID, err
}

// Server reads one server.
func (c *Client) Server(ctx context.Context, id string) (Server, error) {
	var answer struct{ Server Server }
	err := c.Do(ctx, http.MethodGet, Compute, "/servers/"+id, nil, &answer)
	return answer.Server, err
}

// Servers lists the servers of every project whose name starts so.
func (c *Client) Servers(ctx context.Context, prefix string) ([]Server, error) {
	var answer struct{ Servers []Server }
	err := c.Do(ctx, http.MethodGet, Compute, "/servers/detail?all_tenants=1&name="+url.QueryEscape("^"+prefix), nil, &answer)
	return answer.Servers, err
}

// CreateKeyPair has nova make a key pair, and returns the private key.
func (c *Client) CreateKeyPair(ctx context.Context, name string) (string, error) {
	var answer struct {
		KeyPair struct {
			PrivateKey string `json:"private_key"`
		} `json:"keypair"`
	}
	// Later ones only take public keys.
	err := c.DoAt(ctx, "compute 2.91", http.MethodPost, Compute, "/os-keypairs", map[string]any{"keypair": map[string]any{"name": name}}, &answer)
	return answer.KeyPair.PrivateKey, err
}

// DeleteKeyPair removes a key pair.
func (c *Client) DeleteKeyPair(ctx context.Context, name string) error {
	return c.Do(ctx, http.MethodDelete, Compute, "/os-keypairs/"+url.PathEscape(name), nil, nil)
}

// DeleteServer asks for the end of a server; one that is gone is no error.
func (c *Client) DeleteServer(ctx context.Context, id string) error {
	err := c.Do(ctx, http.MethodDelete, Compute, "/servers/"+id, nil, nil)
	if IsStatus(err, http.StatusNotFound) {
		return nil
	}
	return err
}

// Action posts a server action, such as {"os-stop": nil}.
func (c *Client) Action(ctx context.Context, id, name string, args, out any) error {
	return c.Do(ctx, http.MethodPost, Compute, "/servers/"+id+"/action", map[string]any{name: args}, out)
}

// ConsoleLog reads the last lines of the console; all of it when lines is 0.
func (c *Client) ConsoleLog(ctx context.Context, id string, lines int) (string, error) {
	args := map[string]any{}
	if lines > 0 {
		args["length"] = lines
	}
	var answer struct{ Output string }
	err := c.Action(ctx, id, "os-getConsoleOutput", args, &answer)
	return answer.Output, err
}

// WaitStatus waits until the server has the status and no task. A server that goes to ERROR instead ends the wait with its fault.
func (c *Client) WaitStatus(ctx context.Context, id, status string) (Server, error) {
	var server Server
	err := Poll(ctx, 100*time.Millisecond, "server "+id+" to be "+status, func() (bool, error) {
		var err error
		if server, err = c.Server(ctx, id); err != nil {
			return false, err
		}
		if server.Status == "ERROR" && status != "ERROR" {
			message := ""
			if server.Fault != nil {
				message = server.Fault.Message
			}
			return false, fmt.Errorf("server %s is in ERROR: %s", id, message)
		}
		return server.Status == status && server.TaskState == "", nil
	})
	if err != nil {
		err = fmt.Errorf("%w (status %s, vm state %s, task %q)", err, server.Status, server.VMState, server.TaskState)
	}
	return server, err
}

// WaitGone waits until the API knows the server no more.
func (c *Client) WaitGone(ctx context.Context, id string) error {
	return Poll(ctx, 100*time.Millisecond, "server "+id+" to be gone", func() (bool, error) {
		_, err := c.Server(ctx, id)
		if IsStatus(err, http.StatusNotFound) {
			return true, nil
		}
		return false, err
	})
}

// ComputeService is a row of the service list.
type ComputeService struct {
	ID, Binary, Host, Status, State string
}

// ComputeServices lists nova's services; binary may be "" for all.
func (c *Client) ComputeServices(ctx context.Context, binary string) ([]ComputeService, error) {
	var answer struct{ Services []ComputeService }
	err := c.Do(ctx, http.MethodGet, Compute, "/os-services?binary="+binary, nil, &answer)
	return answer.Services, err
}

// Hypervisor is what nova shows of a compute node; the figures are nova's own spelling.
type Hypervisor struct {
	ID                  string
	Hostname            string `json:"hypervisor_hostname"`
	Type                string `json:"hypervisor_type"`
	State, Status       string
	HostIP              string `json:"host_ip"`
	Service             struct{ Host string }
	VCPUs               int    `json:"vcpus"`
	VCPUsUsed           int    `json:"vcpus_used"`
	MemoryMB            int    `json:"memory_mb"`
	MemoryMBUsed        int    `json:"memory_mb_used"`
	LocalGB             int    `json:"local_gb"`
	RunningVMs          int    `json:"running_vms"`
	FreeDiskGB          int    `json:"free_disk_gb"`
	HypervisorVersion   int    `json:"hypervisor_version"`
	DiskAvailableLeast  *int   `json:"disk_available_least"`
	CurrentWorkload     int    `json:"current_workload"`
	HypervisorCPUInfo   any    `json:"cpu_info"`
	HypervisorUptimeStr string `json:"uptime"`
}

// Hypervisors lists the compute nodes in detail.
func (c *Client) Hypervisors(ctx context.Context) ([]Hypervisor, error) {
	var answer struct{ Hypervisors []Hypervisor }
	err := c.Do(ctx, http.MethodGet, Compute, "/os-hypervisors/detail", nil, &answer)
	return answer.Hypervisors, err
}
