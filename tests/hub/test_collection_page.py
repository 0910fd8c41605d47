"""The page of a collection, whose address a publish prints."""

from huggingface_hub import HfApi


def test_a_collection_has_a_page(hub_url, web, visitor, repo):
    api = HfApi(endpoint=hub_url, token="any")
    made = api.create_collection("Variants <b>", namespace="acme", description="smaller & faster", exists_ok=True)
    api.add_collection_item(made.slug, repo, "model", note="8 bits", exists_ok=True)
    page = visitor.http.get(f"/collections/{made.slug}")
    assert page.status_code == 200
    assert f'href="/{repo}"' in page.text and "8 bits" in page.text
    assert "Variants &lt;b&gt;" in page.text and "smaller &amp; faster" in page.text
    api.update_collection_metadata(made.slug, private=True)
    assert visitor.http.get(f"/collections/{made.slug}").status_code == 404
    assert web.http.get("/collections/acme/nothing-0123").status_code == 404
