//! The few descriptions there are: those of the fields that every object has.

/// What a field of an object of the API is for.
pub(super) fn of_object(field: &str) -> Option<&'static str> {
    Some(match field {
        "apiVersion" => "APIVersion defines the group and the version in which this object is written.",
        "kind" => "Kind says what sort of object this is; it cannot be changed.",
        "metadata" => "Standard object's metadata: its name, namespace, labels and history.",
        "spec" => "What is wanted.",
        "status" => "What was observed last.",
        _ => return None,
    })
}

/// What a field of `metadata` is for.
pub(super) fn of_metadata(field: &str) -> Option<&'static str> {
    Some(match field {
        "annotations" => "Notes of tools and people. They cannot be selected by.",
        "creationTimestamp" => "CreationTimestamp is a timestamp of when the server made the object.",
        "deletionGracePeriodSeconds" => "How many seconds the object is given to end.",
        "deletionTimestamp" => "When the object is to be gone, once its deletion was asked for.",
        "finalizers" => "Who has to act before a deleted object goes.",
        "generateName" => "Start of a name that the server completes.",
        "generation" => "Counts the changes of what is wanted.",
        "labels" => "Keys and values by which the object is selected.",
        "managedFields" => "Which client set which fields.",
        "name" => "Name, unique among the objects of its kind in its namespace.",
        "namespace" => "Namespace the object lies in.",
        "ownerReferences" => "Objects without which this one is not needed any more.",
        "resourceVersion" => "State of the object, to be compared for equality or order.",
        "uid" => "Unique in time and space.",
        _ => return None,
    })
}
