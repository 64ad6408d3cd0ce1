// runc within what this machine grants.
//
// A container engine asks runc for every capability, for resource limits and for OOM scores as if it had all rights. Where the
// machine itself lacks one (CAP_SYS_RESOURCE is missing on many CI machines), runc refuses the container. This runtime stands
// before runc, in the engine of the machine and in containerd of a node:
//
//  1. find the file that describes the process (config.json of a bundle, or the file of an exec)
//  2. strike what we do not hold: capabilities; without CAP_SYS_RESOURCE also limits and scores that we may not set
//  3. become runc, arguments unchanged
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// In the kernel's order: a name's position is its bit.
var capabilities = strings.Fields(`
	CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
	NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
	SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
	MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

// What we need of a process in the OCI runtime specification; the rest passes through untouched.
type rlimit struct {
	Type string `json:"type"`
	Hard uint64 `json:"hard"`
	Soft uint64 `json:"soft"`
}

func main() {
	if file, whole := description(os.Args[1:]); file != "" {
		if err := rewrite(file, whole); err != nil {
			fail(fmt.Errorf("cutting %s to what this machine grants: %w", file, err))
		}
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		fail(err)
	}
	fail(syscall.Exec(runc, append([]string{"runc"}, os.Args[1:]...), os.Environ()))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "runc-within:", err)
	os.Exit(1)
}

// description is the file that the command line of runc names, and whether it describes a whole container.
func description(args []string) (file string, whole bool) {
	flag := func(names ...string) string {
		for i, arg := range args {
			name, value, joined := strings.Cut(arg, "=")
			if slices.Contains(names, name) && (joined || i+1 < len(args)) {
				if joined {
					return value
				}
				return args[i+1]
			}
		}
		return ""
	}
	for _, arg := range args {
		switch arg {
		case "create", "run", "restore":
			return filepath.Join(flag("--bundle", "-b"), "config.json"), true
		case "exec":
			return flag("--process", "-p"), false
		}
	}
	return "", false
}

func rewrite(file string, whole bool) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var described map[string]json.RawMessage
	if err := json.Unmarshal(text, &described); err != nil {
		return err
	}
	if whole {
		err = edit(described, "process", cut)
	} else {
		err = cut(&described)
	}
	if err != nil {
		return err
	}
	if text, err = json.Marshal(described); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

func cut(described *map[string]json.RawMessage) error {
	process := *described
	held, err := held()
	if err != nil {
		return err
	}
	if err := edit(process, "capabilities", func(sets *map[string][]string) error {
		for set, names := range *sets {
			(*sets)[set] = slices.DeleteFunc(names, func(name string) bool { return !held[name] })
		}
		return nil
	}); err != nil || held["CAP_SYS_RESOURCE"] {
		return err
	}
	if err := edit(process, "oomScoreAdj", func(score *int) error {
		own, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			return err
		}
		least, err := strconv.Atoi(strings.TrimSpace(string(own)))
		*score = max(*score, least)
		return err
	}); err != nil {
		return err
	}
	return edit(process, "rlimits", func(limits *[]rlimit) error {
		for i := range *limits {
			limit := &(*limits)[i]
			if most, ok := most(limit.Type); ok {
				limit.Hard, limit.Soft = min(limit.Hard, most), min(limit.Soft, most)
			}
		}
		return nil
	})
}

// edit changes one field, if it is there.
func edit[T any](fields map[string]json.RawMessage, name string, change func(*T) error) error {
	raw, there := fields[name]
	if !there {
		return nil
	}
	var value T
	if err := json.Unmarshal(raw, &value); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := change(&value); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	raw, err := json.Marshal(value)
	fields[name] = raw
	return err
}

func held() (map[string]bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, err
	}
	permitted := uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
	names := map[string]bool{}
	for bit, name := range capabilities {
		names["CAP_"+name] = permitted>>bit&1 == 1
	}
	return names, nil
}

// most is the hard limit that we have ourselves: nobody may go above it.
func most(name string) (uint64, bool) {
	resources := map[string]int{"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC,
		"RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_STACK": unix.RLIMIT_STACK}
	resource, known := resources[name]
	var limit unix.Rlimit
	if !known || unix.Getrlimit(resource, &limit) != nil {
		return 0, false
	}
	return limit.Max, true
}
