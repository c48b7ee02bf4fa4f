package main

import (
	"fmt"
	"reflect"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Types inside themselves end here.
const deepest = 12

// Sets every field to a value that occurs once.
func fill(value reflect.Value, counter *int, depth int) {
	*counter++
	n := *counter
	if single(value, n) || depth > deepest {
		return
	}
	switch value.Kind() {
	case reflect.String:
		value.SetString(fmt.Sprintf("s%d", n))
	case reflect.Bool:
		value.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		value.SetInt(int64(n) * 1000 * int64(1-2*(n%2)))
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		value.SetUint(uint64(n % 200))
	case reflect.Float32, reflect.Float64:
		value.SetFloat(float64(n) + 0.5)
	case reflect.Pointer:
		value.Set(reflect.New(value.Type().Elem()))
		fill(value.Elem(), counter, depth+1)
	case reflect.Struct:
		for i := range value.NumField() {
			if field := value.Type().Field(i); field.IsExported() && field.Name != "TypeMeta" {
				fill(value.Field(i), counter, depth+1)
			}
		}
	case reflect.Slice:
		value.Set(reflect.MakeSlice(value.Type(), 2, 2))
		fill(value.Index(0), counter, depth+1)
		// The second is empty: what is not set must look the same, too.
		if value.Type().Elem().Kind() != reflect.Struct {
			fill(value.Index(1), counter, depth+1)
		}
	case reflect.Map:
		value.Set(reflect.MakeMap(value.Type()))
		for range 2 {
			key, element := reflect.New(value.Type().Key()).Elem(), reflect.New(value.Type().Elem()).Elem()
			fill(key, counter, depth+1)
			fill(element, counter, depth+1)
			value.SetMapIndex(key, element)
		}
	}
}

// Values that are not simply the sum of their fields.
func single(value reflect.Value, n int) bool {
	at := time.Unix(int64(n)*100_000, int64(n)*1000).UTC()
	switch field := value.Addr().Interface().(type) {
	case *metav1.Time:
		field.Time = at.Truncate(time.Second)
	case *metav1.MicroTime:
		field.Time = at
	case *metav1.Duration:
		field.Duration = time.Duration(n)*time.Minute + 1500*time.Millisecond
	case *metav1.FieldsV1:
		field.Raw = []byte(fmt.Sprintf(`{"f:a%d":{}}`, n))
	case *runtime.RawExtension:
		field.Raw = []byte(fmt.Sprintf(`{"raw":%d}`, n))
	case *resource.Quantity:
		*field = resource.MustParse(fmt.Sprintf("%dMi", n))
	case *intstr.IntOrString:
		*field = intstr.FromInt32(int32(n))
		if n%2 == 0 {
			*field = intstr.FromString(fmt.Sprintf("%d%%", n%100))
		}
	case *apiextensionsv1.JSON:
		field.Raw = []byte(fmt.Sprintf(`[%d,null]`, n))
	case *apiextensionsv1.JSONSchemaProps:
		*field = schemaSample(n)
	default:
		return false
	}
	return true
}

// A schema holds schemas in every way there is.
func schemaSample(n int) apiextensionsv1.JSONSchemaProps {
	leaf := apiextensionsv1.JSONSchemaProps{Type: fmt.Sprintf("t%d", n)}
	number, count, yes := 1.5, int64(n), true
	return apiextensionsv1.JSONSchemaProps{
		Type: "object", Description: "d", Maximum: &number, MinLength: &count, XPreserveUnknownFields: &yes,
		Items:                &apiextensionsv1.JSONSchemaPropsOrArray{Schema: &leaf},
		AdditionalProperties: &apiextensionsv1.JSONSchemaPropsOrBool{Allows: true, Schema: &leaf},
		AdditionalItems:      &apiextensionsv1.JSONSchemaPropsOrBool{Allows: false},
		Properties: map[string]apiextensionsv1.JSONSchemaProps{"a": leaf,
			"b": {Items: &apiextensionsv1.JSONSchemaPropsOrArray{JSONSchemas: []apiextensionsv1.JSONSchemaProps{leaf, leaf}}}},
		AllOf:        []apiextensionsv1.JSONSchemaProps{leaf},
		Not:          &leaf,
		Dependencies: apiextensionsv1.JSONSchemaDependencies{"x": {Schema: &leaf}, "y": {Property: []string{"p", "q"}}},
		Enum:         []apiextensionsv1.JSON{{Raw: []byte(`"e"`)}, {Raw: []byte(`null`)}},
		Default:      &apiextensionsv1.JSON{Raw: []byte(`{"z":0}`)},
		XValidations: apiextensionsv1.ValidationRules{{Rule: "self"}},
	}
}
