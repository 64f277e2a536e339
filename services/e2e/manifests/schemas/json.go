package schemas

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Location returns where kubeconform finds the schemas that [Write] wrote into dir.
func Location(dir string) string {
	return filepath.Join(dir, "{{.ResourceKind}}{{.KindSuffix}}.json")
}

// Write makes JSON schemas of Kubernetes' own types and of the CRDs for kubeconform, one file for
// each kind. The schemas are strict: a misspelt field is an error.
func Write(ctx context.Context, dir string) error {
	source, err := module(ctx, kubernetes)
	if err != nil {
		return err
	}
	if err := writeKubernetes(filepath.Join(source, "api", "openapi-spec", "swagger.json"), dir); err != nil {
		return err
	}
	crds, err := CRDs(ctx)
	if err != nil {
		return err
	}
	for _, crd := range crds {
		if err := writeCRD(crd, dir); err != nil {
			return err
		}
	}
	return nil
}

// schema is a JSON schema as it is encoded.
type schema = map[string]any

// writeKubernetes writes all definitions into one file, and for each kind a file that refers to it.
func writeKubernetes(swagger, dir string) error {
	text, err := os.ReadFile(swagger)
	if err != nil {
		return err
	}
	var spec struct{ Definitions map[string]schema }
	if err := json.Unmarshal(text, &spec); err != nil {
		return fmt.Errorf("read %s: %w", swagger, err)
	}
	// JSON writes these two types in two ways, which Swagger cannot express.
	spec.Definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"] = schema{"type": []string{"integer", "string"}}
	spec.Definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = schema{"type": []string{"number", "string"}}
	for name, definition := range spec.Definitions {
		beStrict(definition)
		kinds, _ := definition["x-kubernetes-group-version-kind"].([]any)
		// The options of requests belong to every group.
		if len(kinds) != 1 {
			continue
		}
		kind := kinds[0].(schema)
		if err := write(dir, kind["group"].(string), kind["version"].(string), kind["kind"].(string),
			schema{"$ref": "definitions.json#/definitions/" + name}); err != nil {
			return err
		}
	}
	return writeJSON(filepath.Join(dir, "definitions.json"), schema{"definitions": spec.Definitions})
}

// writeCRD writes the schema of each version of a CRD.
func writeCRD(file, dir string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	// The fields of a CRD that matter here.
	var crd struct {
		Spec struct {
			Group    string
			Names    struct{ Kind string }
			Versions []struct {
				Name   string
				Schema struct {
					OpenAPIV3Schema schema `yaml:"openAPIV3Schema"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(text, &crd); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	for _, version := range crd.Spec.Versions {
		beStrict(version.Schema.OpenAPIV3Schema)
		if err := write(dir, crd.Spec.Group, version.Name, crd.Spec.Names.Kind,
			version.Schema.OpenAPIV3Schema); err != nil {
			return err
		}
	}
	return nil
}

// beStrict makes a schema refuse the fields that it does not name. It leaves schemas alone that
// name no field.
func beStrict(s schema) {
	properties, _ := s["properties"].(schema)
	if _, says := s["additionalProperties"]; properties != nil && !says &&
		s["x-kubernetes-preserve-unknown-fields"] != true {
		s["additionalProperties"] = false
	}
	for _, property := range properties {
		beStrict(property.(schema))
	}
	// Objects can be nested in lists and maps too.
	for _, below := range []string{"items", "additionalProperties"} {
		if s, ok := s[below].(schema); ok {
			beStrict(s)
		}
	}
}

// write writes a schema under the name that kubeconform asks for: the kind, the first word of its
// group, and the version.
func write(dir, group, version, kind string, s schema) error {
	name := kind
	if group != "" {
		group, _, _ = strings.Cut(group, ".")
		name += "-" + group
	}
	return writeJSON(filepath.Join(dir, strings.ToLower(name+"-"+version)+".json"), s)
}

// writeJSON writes a schema into a file.
func writeJSON(file string, s schema) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return os.WriteFile(file, text, 0o644)
}
