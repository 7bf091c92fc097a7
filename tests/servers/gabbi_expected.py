"""Tests of Placement's own suite that the Placement API of the examples does not pass, each with the reason."""

ALWAYS = {
    "microversion_other_accept_header_bad_version": "errors are JSON here, also for who asks for HTML",
    "bug-1674694_404_with_other_accept": "errors are JSON here, also for who asks for HTML",
    "basic-http_bad_content_length_not_int": "the client itself refuses to send such a header over a socket",
    "cors_valid_options_request": "Starlette's CORS also allows the headers that need no permission",
    "cors_invalid_options_request": "Starlette's CORS answers a stranger with 400",
    "allocation-candidates-root-required_limit_to_multiattach-capable_unsuffixed_sharing": "traits are sorted here",
}
"""Whoever counts the generations."""

COUNTED_OTHERWISE = [
    "allocations_check_allocations_by_consumer_id",
    "allocations_check_allocations_by_different_consumer_id",
    "allocations_check_allocations_for_the_resource_provider",
    "allocations_check_usages",
    "allocations_get_allocations_on_existing_consumer_with_dashed_uuid",
    "allocations_get_those_allocations_for_consumer",
    "allocations_get_those_allocations_for_resource_provider",
    "consumer-types-1.38_confirm_reshaped_allocations",
    "consumer-types-1.38_reshaper_accepts_consumer_type",
    "inventory_delete_all_inventory_with_put",
    "inventory_get_generation_after_deletion",
    "inventory_get_inventories_after_deletions",
    "inventory_post_an_inventory_again",
    "reshaper_bad_consumer_gen",
    "reshaper_bad_rp_gen",
    "reshaper_consolidate_inventory_and_allocations",
    "reshaper_empty_allocations_inv_in_use",
    "reshaper_get_usages_on_child_after_move",
    "reshaper_get_usages_on_child_after_move_back",
    "reshaper_get_usages_on_parent_after_move",
    "reshaper_get_usages_on_parent_after_move_back",
    "reshaper_move_bad_allocation_409",
    "reshaper_move_to_bad_child_400",
    "reshaper_move_vcpu_inventory_and_allocations_to_child",
    "reshaper_reshape_with_mappings",
    "reshaper_with_allocations",
    "resource-provider_add_traits_to_a_provider",
    "resource-provider_filter_providers_with_a_trait_some_of_them_have",
    "resource-provider_list_providers_forbidden_1.22",
    "resource-provider_list_providers_with_'required'_parameter_filters_cumulatively_with_in_tree",
    "resource-provider_multiple_forbidden",
    "resource-provider_update_a_resource_provider's_name",
    "with-allocations_change_inventory_despite_capacity_exceeded",
    "with-allocations_fail_to_change_inventory_via_put_1.23",
    "with-allocations_get_allocations",
    "with-allocations_get_usages",
]
"""They compare generations, or go on from there, where cloudcore counts edits of a provider and nothing else: not
writes that change nothing, not allocations, but names and parents."""
