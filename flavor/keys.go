package flavor

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Flags of nova-lxd, with the prefix "lxd:" or "lxc:".
const (
	flagNested     = "nested_allowed"
	flagPrivileged = "privileged_allowed"
	flagIsolated   = "isolated"
)

func isFlag(name string) bool {
	return name == flagNested || name == flagPrivileged || name == flagIsolated
}

// isSchedulers tells whether a namespace speaks to the scheduler and Placement
// only, which have acted on it before the instance came here ("resources", "trait"
// and their numbered groups, nova/scheduler/utils.py:ResourceRequest).
func isSchedulers(namespace string) bool {
	switch namespace {
	case "capabilities", "aggregate_instance_extra_specs":
		return true
	}
	return strings.HasPrefix(namespace, "resources") || strings.HasPrefix(namespace, "trait")
}

// Reasons of refusals that several keys share.
const (
	reasonPinning = "dedicated CPUs are not provided by this host"
	reasonNUMA    = "NUMA placement is not provided by this host"
	reasonMemory  = "this memory backing is not provided by this host"
	reasonDevice  = "device pass-through is not provided by this host"
	reasonSecure  = "a container cannot give this protection"
)

// asker tells whether a value really asks for what its key is about.
type asker func(key, value string) (bool, error)

type refusal struct {
	reason string
	asks   asker
}

// refusals are the extra specs whose promise would silently be broken: a flavor
// that asks for one is refused (nova/api/validation/extra_specs/{hw,os,accel,pci_passthrough}.py).
var refusals = map[string]refusal{
	"hw:cpu_policy":           {reasonPinning, unless("shared")},
	"hw:cpu_dedicated_mask":   {reasonPinning, unless()},
	"hw:cpu_thread_policy":    {reasonPinning, unless("prefer")},
	"hw:cpu_realtime":         {"real-time scheduling is not provided by this host", parseBool},
	"hw:numa_nodes":           {reasonNUMA, unless()},
	"hw:mem_page_size":        {reasonMemory, unless("small", "any")},
	"hw:locked_memory":        {reasonMemory, parseBool},
	"hw:pmem":                 {reasonMemory, unless()},
	"pci_passthrough:alias":   {reasonDevice, unless()},
	"accel:device_profile":    {reasonDevice, unless()},
	"hw:mem_encryption":       {reasonSecure, parseBool},
	"hw:ephemeral_encryption": {reasonSecure, parseBool},
	"hw:tpm_version":          {reasonSecure, unless()},
	"hw:tpm_model":            {reasonSecure, unless()},
	"hw:tpm_secret_security":  {reasonSecure, unless()},
	"os:secure_boot":          {reasonSecure, unless("disabled", "optional")},
}

// unless asks with every value but the harmless ones.
func unless(harmless ...string) asker {
	return func(_, value string) (bool, error) {
		for _, h := range harmless {
			if strings.EqualFold(value, h) {
				return false, nil
			}
		}
		return true, nil
	}
}

// parseInt reads a decimal number of at least low.
func parseInt(key, value string, low int64, into *int64) error {
	n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
	switch {
	case err != nil:
		return &InvalidError{Key: key, Value: value, Reason: fmt.Sprintf("must be a whole number up to %d", int64(math.MaxInt64))}
	case n < low:
		return &InvalidError{Key: key, Value: value, Reason: fmt.Sprintf("must be at least %d", low)}
	}
	*into = n
	return nil
}

// parseBool knows the words of oslo.utils strutils.bool_from_string(strict=True).
func parseBool(key, value string) (bool, error) {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "1", "t", "true", "on", "y", "yes":
		return true, nil
	case "0", "f", "false", "off", "n", "no":
		return false, nil
	}
	return false, &InvalidError{Key: key, Value: value, Reason: "must be true or false"}
}
