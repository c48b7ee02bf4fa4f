// Writes down how the Kubernetes API looks in protocol buffers, from the struct tags of its own Go types:
//
//	cargo xtask protobuf
//
// It prints the field table that crates/apiserver/src/protobuf.rs reads (the syntax is described there), or, with the
// argument "samples", objects of some kinds with every field set, each in both encodings: one JSON document per line.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"sort"
	"strconv"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	protobuf "k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// Types that have a form of their own in JSON, by their package and name.
var special = map[string]string{
	"k8s.io/apimachinery/pkg/apis/meta/v1.Time":                                             "t",
	"k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime":                                        "u",
	"k8s.io/apimachinery/pkg/apis/meta/v1.Duration":                                         "n",
	"k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1":                                         "j",
	"k8s.io/apimachinery/pkg/runtime.RawExtension":                                          "j",
	"k8s.io/apimachinery/pkg/api/resource.Quantity":                                         "q",
	"k8s.io/apimachinery/pkg/util/intstr.IntOrString":                                       "o",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSON":                         "j",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSONSchemaPropsOrBool":        "B",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSONSchemaPropsOrArray":       "A",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSONSchemaPropsOrStringArray": "S",
}

func main() {
	must(apiextensionsv1.AddToScheme(scheme.Scheme))
	must(apiregistrationv1.AddToScheme(scheme.Scheme))
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	if len(os.Args) > 1 && os.Args[1] == "samples" {
		samples(out)
		return
	}
	table(out)
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func stable(version string) bool {
	_, err := strconv.Atoi(strings.TrimPrefix(version, "v"))
	return err == nil
}

// Every kind of a stable version that clients can send.
func kinds() map[string]reflect.Type {
	found := map[string]reflect.Type{}
	for gvk, kind := range scheme.Scheme.AllKnownTypes() {
		_, encodes := reflect.New(kind).Interface().(interface{ Marshal() ([]byte, error) })
		list := strings.HasSuffix(gvk.Kind, "List")
		if !stable(gvk.Version) || !encodes || list || kind.PkgPath() == reflect.TypeOf(metav1.Status{}).PkgPath() {
			continue
		}
		found[group(gvk.Group)+"."+gvk.Version+"."+gvk.Kind] = kind
	}
	for _, object := range []any{metav1.DeleteOptions{}, metav1.Status{}} {
		kind := reflect.TypeOf(object)
		found["meta.v1."+kind.Name()] = kind
	}
	return found
}

func group(name string) string {
	if name == "" {
		return "core"
	}
	return strings.SplitN(name, ".", 2)[0]
}

// A name for a message: its group and version are the last parts of its package's path.
func messageName(kind reflect.Type) string {
	parts := strings.Split(kind.PkgPath(), "/")
	return parts[len(parts)-2] + "." + parts[len(parts)-1] + "." + kind.Name()
}

func table(out *bufio.Writer) {
	messages := map[string][]string{}
	for name, kind := range kinds() {
		if name != messageName(kind) {
			must(fmt.Errorf("%s is called %s", messageName(kind), name))
		}
		describe(kind, messages)
	}
	names := make([]string, 0, len(messages))
	for name := range messages {
		names = append(names, name)
	}
	sort.Strings(names)
	fmt.Fprintln(out, "# Field numbers of the Kubernetes API in protocol buffers. Written by `cargo xtask protobuf`.")
	for _, name := range names {
		fmt.Fprintln(out, name)
		for _, field := range messages[name] {
			fmt.Fprintln(out, " "+field)
		}
	}
}

func describe(kind reflect.Type, messages map[string][]string) {
	name := messageName(kind)
	if _, known := messages[name]; known {
		return
	}
	messages[name] = nil
	var lines []string
	for i := range kind.NumField() {
		field := kind.Field(i)
		tag := field.Tag.Get("protobuf")
		if tag == "" || tag == "-" {
			continue
		}
		number := strings.Split(tag, ",")[1]
		json := strings.Split(field.Tag.Get("json"), ",")
		inline := json[0] == "" && field.Anonymous
		mark, inner := mark(field.Type, inline, field.Tag.Get("json"))
		title := json[0]
		if inline {
			title = "-"
		}
		lines = append(lines, number+" "+title+" "+mark+letter(inner, messages))
	}
	messages[name] = lines
}

// How often a field comes, and the type of one value of it.
func mark(kind reflect.Type, inline bool, json string) (string, reflect.Type) {
	switch {
	case inline:
		return "~", kind
	case kind.Kind() == reflect.Pointer:
		return "?", kind.Elem()
	case listOfBytes(kind):
	case isWrappedList(kind):
	case kind.Kind() == reflect.Slice:
		return "*", kind.Elem()
	case kind.Kind() == reflect.Map:
		return "%", kind.Elem()
	}
	letter := special[kind.PkgPath()+"."+kind.Name()]
	if (letter == "o" || letter == "q") && !strings.Contains(json, ",omitzero") {
		return "=", kind
	}
	if !strings.Contains(json, ",omit") && kind.Kind() != reflect.Struct && kind.Kind() != reflect.Slice {
		return "=", kind
	}
	return "!", kind
}

func listOfBytes(kind reflect.Type) bool {
	return kind.Kind() == reflect.Slice && kind.Elem().Kind() == reflect.Uint8
}

// A list that is a message of its own, so that a map can hold it.
func isWrappedList(kind reflect.Type) bool {
	_, wrapped := reflect.New(kind).Interface().(interface{ Marshal() ([]byte, error) })
	return kind.Kind() == reflect.Slice && wrapped
}

func letter(kind reflect.Type, messages map[string][]string) string {
	for kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	if letter, ok := special[kind.PkgPath()+"."+kind.Name()]; ok {
		if letter == "B" || letter == "A" || letter == "S" {
			describe(kind.Field(fieldOf(kind, "Schema")).Type.Elem(), messages)
		}
		return letter
	}
	switch {
	case listOfBytes(kind):
		return "y"
	case isWrappedList(kind):
		return "l"
	}
	switch kind.Kind() {
	case reflect.String:
		return "s"
	case reflect.Bool:
		return "b"
	case reflect.Float64, reflect.Float32:
		return "d"
	case reflect.Struct:
		describe(kind, messages)
		return "m" + messageName(kind)
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Uint64, reflect.Uint8:
		return "i"
	}
	must(fmt.Errorf("no letter for %s", kind))
	return ""
}

func fieldOf(kind reflect.Type, name string) int {
	field, _ := kind.FieldByName(name)
	return field.Index[0]
}

// Kinds whose samples are kept: each form of field occurs in one of them.
var sampled = []schema.GroupVersionKind{
	{Version: "v1", Kind: "Pod"},
	{Version: "v1", Kind: "Service"},
	{Version: "v1", Kind: "ConfigMap"},
	{Version: "v1", Kind: "Secret"},
	{Version: "v1", Kind: "Namespace"},
	{Version: "v1", Kind: "PersistentVolumeClaim"},
	{Version: "v1", Kind: "ResourceQuota"},
	{Group: "apps", Version: "v1", Kind: "Deployment"},
	{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"},
	{Group: "apiregistration.k8s.io", Version: "v1", Kind: "APIService"},
	{Group: "authorization.k8s.io", Version: "v1", Kind: "SubjectAccessReview"},
	{Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler"},
	{Group: "batch", Version: "v1", Kind: "CronJob"},
	{Group: "certificates.k8s.io", Version: "v1", Kind: "CertificateSigningRequest"},
	{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease"},
	{Group: "events.k8s.io", Version: "v1", Kind: "Event"},
	{Group: "networking.k8s.io", Version: "v1", Kind: "Ingress"},
	{Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy"},
	{Group: "policy", Version: "v1", Kind: "Eviction"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole"},
	{Group: "resource.k8s.io", Version: "v1", Kind: "ResourceClaim"},
	{Version: "v1", Kind: "DeleteOptions"},
}

func samples(out *bufio.Writer) {
	encoder := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	for _, gvk := range sampled {
		for _, full := range []bool{false, true} {
			object, err := scheme.Scheme.New(gvk)
			must(err)
			if full {
				counter := 0
				fill(reflect.ValueOf(object).Elem(), &counter, 0)
			}
			object.GetObjectKind().SetGroupVersionKind(gvk)
			encoded, err := runtime.Encode(encoder, object)
			must(err)
			must(lines.Encode(map[string]any{"protobuf": encoded, "json": object}))
		}
	}
}
