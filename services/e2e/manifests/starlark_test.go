package manifests_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"go.starlark.net/syntax"
)

// tiltfile is what a Tiltfile declares. The test evaluates it as Tilt does, with those of Tilt's
// functions that this Tiltfile calls. Any other function or parameter is an error, as it is in Tilt
// if Tilt does not have it.
type tiltfile struct {
	// context is Kubernetes' current context.
	context string
	// args are the flags of Tilt's command line.
	args map[string]starlark.Value

	flags     []string
	resources map[string]*resource
	// builds are keyed by image, without a tag.
	builds map[string]build

	// objects were given to k8s_yaml and are in no resource yet.
	objects []document
	// later holds what k8s_resource changes. It runs when everything is declared.
	later []func() error
}

// resource is a line on Tilt's page.
type resource struct {
	objects []document
	// files are watched in addition to what the resource was rendered from.
	files    []string
	commands []string
	images   []string
	needs    []string // resource_deps
	labels   []string
	// ports are on this machine.
	ports []int
	// button means that the resource runs only when somebody presses its button.
	button bool
	// custom commands get a kubeconfig from Tilt that has only this context.
	custom bool
}

type build struct {
	context, dockerfile string
	args                map[string]string
	only                []string
}

func evaluate(t testing.TB, context string, args map[string]starlark.Value) (*tiltfile, error) {
	t.Helper()
	f := &tiltfile{context: context, args: args, resources: map[string]*resource{}, builds: map[string]build{}}
	if _, err := f.load(t, "Tiltfile"); err != nil {
		return nil, err
	}
	return f, f.assemble()
}

// load runs a file of the repository.
func (f *tiltfile) load(t testing.TB, path string) (starlark.StringDict, error) {
	thread := &starlark.Thread{Load: func(_ *starlark.Thread, name string) (starlark.StringDict, error) {
		if strings.Contains(name, "://") {
			return nil, fmt.Errorf("%s would be fetched at run time", name)
		}
		return f.load(t, filepath.Join(filepath.Dir(path), name))
	}}
	// These are Tilt's options.
	options := &syntax.FileOptions{Set: true, GlobalReassign: true, Recursion: true, TopLevelControl: true, While: true}
	globals, err := starlark.ExecFileOptions(options, thread, filepath.Join(root, path), nil, f.api(t))
	if inside, ok := errors.AsType[*starlark.EvalError](err); ok {
		err = errors.New(inside.Backtrace())
	}
	return globals, err
}

// function is one of Tilt's functions. It gets its arguments by unpack, whose pairs are those of
// starlark.UnpackArgs.
type function = func(unpack func(pairs ...any) error) (starlark.Value, error)

func builtin(name string, do function) *starlark.Builtin {
	call := func(_ *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple,
		kwargs []starlark.Tuple) (starlark.Value, error) {
		value, err := do(func(pairs ...any) error { return starlark.UnpackArgs(name, args, kwargs, pairs...) })
		if value == nil {
			value = starlark.None
		}
		return value, err
	}
	return starlark.NewBuiltin(name, call)
}

// api returns Tilt's functions, by the names of https://docs.tilt.dev/api.html.
func (f *tiltfile) api(t testing.TB) starlark.StringDict {
	api := starlark.StringDict{
		"struct":              starlark.NewBuiltin("struct", starlarkstruct.Make),
		"TRIGGER_MODE_MANUAL": starlark.String("manual"),
		"config": starlarkstruct.FromStringDict(starlark.String("config"), starlark.StringDict{
			"define_string": builtin("define_string", f.defineFlag),
			"define_bool":   builtin("define_bool", f.defineFlag),
			"parse":         builtin("parse", f.parseFlags),
		}),
	}
	for name, do := range map[string]function{
		"k8s_context": func(func(...any) error) (starlark.Value, error) {
			return starlark.String(f.context),
				nil
		},
		"kustomize":         func(unpack func(...any) error) (starlark.Value, error) { return f.kustomize(t, unpack) },
		"helm":              func(unpack func(...any) error) (starlark.Value, error) { return f.helm(t, unpack) },
		"k8s_yaml":          func(unpack func(...any) error) (starlark.Value, error) { return f.k8sYAML(t, unpack) },
		"k8s_resource":      f.k8sResource,
		"k8s_custom_deploy": f.k8sCustomDeploy,
		"local_resource":    f.localResource,
		"docker_build":      f.dockerBuild,
	} {
		api[name] = builtin(name, do)
	}
	// These functions only describe resources.
	for name, parameters := range map[string][]string{
		"version_settings":   {"constraint"},
		"analytics_settings": {"enable"},
		"update_settings":    {"k8s_upsert_timeout_secs"},
		"ci_settings":        {"timeout", "readiness_timeout", "k8s_grace_period"},
		"port_forward":       {"local_port", "container_port", "name?", "link_path?"},
		"link":               {"url", "name"},
		"probe":              {"http_get"},
		"http_get_action":    {"port", "path"},
	} {
		api[name] = builtin(name, func(unpack func(...any) error) (starlark.Value, error) {
			values, pairs, fields := make([]starlark.Value, len(parameters)), []any{}, starlark.StringDict{}
			for i, parameter := range parameters {
				values[i] = starlark.None
				pairs = append(pairs, parameter, &values[i])
			}
			err := unpack(pairs...)
			for i, parameter := range parameters {
				fields[strings.TrimSuffix(parameter, "?")] = values[i]
			}
			return starlarkstruct.FromStringDict(starlark.String(name), fields), err
		})
	}
	return api
}

func (f *tiltfile) defineFlag(unpack func(...any) error) (starlark.Value, error) {
	var name, usage string
	err := unpack("name", &name, "usage", &usage)
	f.flags = append(f.flags, name)
	return nil, err
}

func (f *tiltfile) parseFlags(func(...any) error) (starlark.Value, error) {
	parsed := starlark.NewDict(len(f.args))
	for name, value := range f.args {
		if !slices.Contains(f.flags, name) {
			return nil, fmt.Errorf("unknown flag: --%s", name)
		}
		if err := parsed.SetKey(starlark.String(name), value); err != nil {
			return nil, err
		}
	}
	return parsed, nil
}

func (f *tiltfile) kustomize(t testing.TB, unpack func(...any) error) (starlark.Value, error) {
	var path string
	if err := unpack("paths", &path); err != nil {
		return nil, err
	}
	return starlark.String(kustomize(t, path)), nil
}

// helm renders a chart without its tests, as Tilt does.
func (f *tiltfile) helm(t testing.TB, unpack func(...any) error) (starlark.Value, error) {
	var chart, name, namespace string
	var set *starlark.List
	if err := unpack("paths", &chart, "name", &name, "namespace", &namespace, "set", &set); err != nil {
		return nil, err
	}
	args := []string{"template", name, chart, "--namespace", namespace}
	for _, value := range elements[string](set) {
		args = append(args, "--set", value)
	}
	requireHelm(t)
	out, _ := run(t, nil, "helm", args...)
	rendered := strings.Split(out, "---\n")
	rendered = slices.DeleteFunc(rendered, func(manifest string) bool {
		source, _, _ := strings.Cut(manifest, "\n")
		return strings.Contains(source, "/tests/")
	})
	return starlark.String(strings.Join(rendered, "---\n")), nil
}

func (f *tiltfile) k8sYAML(t testing.TB, unpack func(...any) error) (starlark.Value, error) {
	var text string
	err := unpack("yaml", &text)
	f.objects = append(f.objects, documents(t, []byte(text))...)
	return nil, err
}

func (f *tiltfile) k8sResource(unpack func(...any) error) (starlark.Value, error) {
	var name, newName, readiness string
	var objects, needs, labels, forwards, links *starlark.List
	err := unpack("workload?", &name, "new_name?", &newName, "objects?", &objects, "resource_deps?", &needs,
		"labels?", &labels,
		"port_forwards?", &forwards, "links?", &links, "pod_readiness?", &readiness)
	f.later = append(f.later, func() error {
		r := f.resources[name]
		switch {
		case name == "":
			r = &resource{}
		case r == nil:
			return fmt.Errorf("there is no resource %q", name)
		}
		if newName != "" {
			delete(f.resources, name)
			if err := f.add(newName, r); err != nil {
				return err
			}
		}
		for _, key := range elements[string](objects) {
			i := slices.IndexFunc(f.objects, func(o document) bool {
				return key == field[string](o, "metadata", "name")+":"+strings.ToLower(field[string](o, "kind"))
			})
			if i < 0 {
				return fmt.Errorf("there is no object %q for a resource", key)
			}
			r.objects = append(r.objects, f.objects[i])
			f.objects = slices.Delete(f.objects, i, i+1)
		}
		r.needs = append(r.needs, elements[string](needs)...)
		r.labels = append(r.labels, elements[string](labels)...)
		for _, forward := range elements[*starlarkstruct.Struct](forwards) {
			r.ports = append(r.ports, number(forward, "local_port"))
		}
		return nil
	})
	return nil, err
}

func (f *tiltfile) k8sCustomDeploy(unpack func(...any) error) (starlark.Value, error) {
	var name, apply, remove string
	var files, images *starlark.List
	err := unpack("name", &name, "apply_cmd", &apply, "delete_cmd", &remove, "deps", &files, "image_deps?", &images)
	return nil, errors.Join(err, f.add(name, &resource{
		commands: []string{apply, remove}, files: elements[string](files), images: elements[string](images),
		custom: true,
	}))
}

func (f *tiltfile) localResource(unpack func(...any) error) (starlark.Value, error) {
	var name, cmd, serve, trigger string
	var needs, labels, links *starlark.List
	var env, serveEnv *starlark.Dict
	var ready *starlarkstruct.Struct
	autoInit, parallel := true, false
	err := unpack("name", &name, "cmd?", &cmd, "serve_cmd?", &serve, "trigger_mode?", &trigger, "auto_init?", &autoInit,
		"allow_parallel?", &parallel, "resource_deps?", &needs, "labels?", &labels, "links?", &links,
		"env?", &env, "serve_env?", &serveEnv, "readiness_probe?", &ready)
	r := &resource{
		commands: []string{cmd + serve}, needs: elements[string](needs), labels: elements[string](labels),
		button: trigger == "manual" && !autoInit,
	}
	if ready != nil {
		get, _ := ready.Attr("http_get")
		r.ports = []int{number(get.(*starlarkstruct.Struct), "port")}
	}
	return nil, errors.Join(err, f.add(name, r))
}

func (f *tiltfile) dockerBuild(unpack func(...any) error) (starlark.Value, error) {
	var image string
	var only *starlark.List
	args := &starlark.Dict{}
	b := build{args: map[string]string{}}
	err := unpack("ref", &image, "context", &b.context, "dockerfile", &b.dockerfile, "build_args", &args, "only", &only)
	for _, item := range args.Items() {
		b.args[string(item[0].(starlark.String))] = string(item[1].(starlark.String))
	}
	b.only = elements[string](only)
	f.builds[image] = b
	return nil, err
}

func (f *tiltfile) add(name string, r *resource) error {
	if f.resources[name] != nil {
		return fmt.Errorf("there are two resources %q", name)
	}
	f.resources[name] = r
	return nil
}

// assemble makes a resource of each workload with the Services that select its pods, and then
// applies k8s_resource. Tilt applies the objects that are left first of all.
func (f *tiltfile) assemble() error {
	all := f.objects
	f.objects = nil
	for _, o := range all {
		images := images(o)
		if len(images) == 0 {
			f.objects = append(f.objects, o)
			continue
		}
		if err := f.add(field[string](o, "metadata", "name"),
			&resource{objects: []document{o}, images: images}); err != nil {
			return err
		}
	}
	for _, r := range f.resources {
		if len(r.objects) == 0 {
			continue
		}
		labels := field[document](r.objects[0], "spec", "template", "metadata", "labels")
		f.objects = slices.DeleteFunc(f.objects, func(o document) bool {
			if field[string](o, "kind") != "Service" {
				return false
			}
			for key, value := range field[document](o, "spec", "selector") {
				if labels[key] != value {
					return false
				}
			}
			r.objects = append(r.objects, o)
			return true
		})
	}
	for _, change := range f.later {
		if err := change(); err != nil {
			return err
		}
	}
	return nil
}

// images returns the images of a Deployment's containers.
func images(o document) (images []string) {
	for _, container := range field[[]any](o, "spec", "template", "spec", "containers") {
		images = append(images, field[string](container.(document), "image"))
	}
	return images
}

// field returns the value in o under the keys, or the zero value.
func field[T any](o document, keys ...string) (value T) {
	for _, key := range keys[:len(keys)-1] {
		o, _ = o[key].(document)
	}
	value, _ = o[keys[len(keys)-1]].(T)
	return value
}

// elements returns the elements of a list, which may be missing.
func elements[T string | *starlarkstruct.Struct](list *starlark.List) (all []T) {
	if list == nil {
		return nil
	}
	for element := range list.Elements() {
		var value any = element
		if s, ok := starlark.AsString(element); ok {
			value = s
		}
		all = append(all, value.(T))
	}
	return all
}

func number(s *starlarkstruct.Struct, name string) int {
	value, _ := s.Attr(name)
	n, err := starlark.AsInt32(value)
	if err != nil {
		panic(err)
	}
	return n
}
