// A small operator with controller-runtime, as people write them: a Garden keeps a Deployment and says how it is.
//
// Its lock, its finalizer, its owner references and its status go through the same API as those of any operator.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/record"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

const finalizer = "example.com/graveyard"

// GardenSpec is what is wanted.
type GardenSpec struct {
	Size  int32  `json:"size"`
	Image string `json:"image"`
}

// GardenStatus is what was seen.
type GardenStatus struct {
	Ready              int32              `json:"ready"`
	Gardener           string             `json:"gardener,omitempty"`
	ObservedGeneration int64              `json:"observedGeneration,omitempty"`
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
}

// Garden is the custom resource.
type Garden struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              GardenSpec   `json:"spec,omitempty"`
	Status            GardenStatus `json:"status,omitempty"`
}

// GardenList is a list of them.
type GardenList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Garden `json:"items"`
}

// DeepCopyObject is asked for by the machinery.
func (g *Garden) DeepCopyObject() runtime.Object {
	out := *g
	g.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Status.Conditions = append([]metav1.Condition(nil), g.Status.Conditions...)
	return &out
}

// DeepCopyObject is asked for by the machinery.
func (l *GardenList) DeepCopyObject() runtime.Object {
	out := *l
	out.Items = nil
	for i := range l.Items {
		out.Items = append(out.Items, *l.Items[i].DeepCopyObject().(*Garden))
	}
	return &out
}

type reconciler struct {
	client.Client
	events record.EventRecorder
	name   string
}

func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var garden Garden
	if err := r.Get(ctx, request.NamespacedName, &garden); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !garden.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, r.bury(ctx, &garden)
	}
	if controllerutil.AddFinalizer(&garden, finalizer) {
		if err := r.Update(ctx, &garden); err != nil {
			return ctrl.Result{}, err
		}
		r.events.Eventf(&garden, core.EventTypeNormal, "Planted", "by %s", r.name)
	}
	plants := &apps.Deployment{ObjectMeta: metav1.ObjectMeta{Name: garden.Name, Namespace: garden.Namespace}}
	_, err := controllerutil.CreateOrUpdate(ctx, r.Client, plants, func() error {
		labels := map[string]string{"garden": garden.Name}
		plants.Spec.Replicas = &garden.Spec.Size
		plants.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
		plants.Spec.Template.Labels = labels
		second := int64(1)
		plants.Spec.Template.Spec.TerminationGracePeriodSeconds = &second
		if len(plants.Spec.Template.Spec.Containers) == 0 {
			plants.Spec.Template.Spec.Containers = []core.Container{{Name: "plant", Command: []string{"sleep", "100000"}}}
		}
		plants.Spec.Template.Spec.Containers[0].Image = garden.Spec.Image
		return controllerutil.SetControllerReference(&garden, plants, r.Scheme())
	})
	if err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{}, r.tell(ctx, &garden, plants)
}

// tell writes the status, if it is news.
func (r *reconciler) tell(ctx context.Context, garden *Garden, plants *apps.Deployment) error {
	before := garden.DeepCopyObject().(*Garden)
	garden.Status.Ready = plants.Status.ReadyReplicas
	garden.Status.Gardener = r.name
	garden.Status.ObservedGeneration = garden.Generation
	condition := metav1.Condition{Type: "Ready", Status: metav1.ConditionFalse, Reason: "Growing", ObservedGeneration: garden.Generation}
	if plants.Status.ReadyReplicas == garden.Spec.Size && plants.Status.ObservedGeneration == plants.Generation {
		condition.Status, condition.Reason = metav1.ConditionTrue, "Grown"
	}
	condition.Message = fmt.Sprintf("%d of %d", plants.Status.ReadyReplicas, garden.Spec.Size)
	meta.SetStatusCondition(&garden.Status.Conditions, condition)
	return r.Status().Patch(ctx, garden, client.MergeFrom(before))
}

// bury notes the garden down in a place that outlives it, and lets it go.
func (r *reconciler) bury(ctx context.Context, garden *Garden) error {
	yard := &core.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "graveyard", Namespace: garden.Namespace}}
	_, err := controllerutil.CreateOrUpdate(ctx, r.Client, yard, func() error {
		if yard.Data == nil {
			yard.Data = map[string]string{}
		}
		yard.Data[garden.Name] = r.name
		return nil
	})
	if err != nil {
		return err
	}
	if controllerutil.RemoveFinalizer(garden, finalizer) {
		return r.Update(ctx, garden)
	}
	return nil
}

func main() {
	name := flag.String("name", "gardener", "who writes the status")
	namespace := flag.String("namespace", "default", "the namespace watched, and of the lock")
	flag.Parse()
	ctrl.SetLogger(zap.New())
	if err := run(*name, *namespace); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(name, namespace string) error {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return err
	}
	version := schema.GroupVersion{Group: "example.com", Version: "v1"}
	scheme.AddKnownTypes(version, &Garden{}, &GardenList{})
	metav1.AddToGroupVersion(scheme, version)
	lease, renew, retry := 15*time.Second, 12*time.Second, time.Second
	manager, err := ctrl.NewManager(ctrl.GetConfigOrDie(), ctrl.Options{
		Scheme:                  scheme,
		Cache:                   cache.Options{DefaultNamespaces: map[string]cache.Config{namespace: {}}},
		Metrics:                 server.Options{BindAddress: "0"},
		LeaderElection:          true,
		LeaderElectionID:        "gardener",
		LeaderElectionNamespace: namespace,
		LeaseDuration:           &lease,
		RenewDeadline:           &renew,
		RetryPeriod:             &retry,
	})
	if err != nil {
		return err
	}
	gardener := &reconciler{Client: manager.GetClient(), events: manager.GetEventRecorderFor("gardener"), name: name}
	if err := ctrl.NewControllerManagedBy(manager).For(&Garden{}).Owns(&apps.Deployment{}).Complete(gardener); err != nil {
		return err
	}
	return manager.Start(ctrl.SetupSignalHandler())
}
